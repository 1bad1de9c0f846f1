package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	treePrefix    = "go.sum database tree\n"
	cosignature   = 0x04
	mostInteger   = 1<<53 - 1
	timeAndSigned = 8 + ed25519.SignatureSize
)

// signers says whose signatures stand under a log's checkpoints: the log's first, then any of the witnesses, in order.
//
// strict asks for the one way of writing such a note. Without it whatever the library takes is taken.
type signers struct {
	log       note.Verifier
	witnesses []note.Verifier
	strict    bool
}

// witness verifies the cosignatures of C2SP tlog-cosignature, which the library knows nothing of. For it this is
// a note.Verifier like any other.
type witness struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.id }
func (w *witness) Verify(text, signature []byte) bool {
	if len(signature) != timeAndSigned {
		return false
	}
	at := binary.BigEndian.Uint64(signature)
	if at < 1 || at > mostInteger {
		return false
	}
	return ed25519.Verify(w.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text), signature[8:])
}

func newWitness(vkey string) (note.Verifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 || parts[0] == "" {
		return nil, errors.New("a witness's verifier key is malformed")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != cosignature {
		return nil, errors.New("a witness's verifier key is not for cosignatures")
	}
	digest := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	if vkey != fmt.Sprintf("%s+%x+%s", parts[0], digest[:4], base64.StdEncoding.EncodeToString(key)) {
		return nil, errors.New("a witness's verifier key has another id, or is not written in the one way")
	}
	return &witness{parts[0], binary.BigEndian.Uint32(digest[:4]), key[1:]}, nil
}

// open has the library open a note and read its tree.
//
// Strict besides: the library decodes base64 without looking at the unused bits of its last digit, and takes
// further signature lines, so a note that it accepts need not be the one that was signed. What these values
// are written as is therefore compared with the note.
func (s signers) open(text []byte) (tlog.Tree, error) {
	opened, err := note.Open(text, note.VerifierList(append([]note.Verifier{s.log}, s.witnesses...)...))
	if err != nil {
		return tlog.Tree{}, err
	}
	if opened.Sigs[0].Name != s.log.Name() || opened.Sigs[0].Hash != s.log.KeyHash() {
		return tlog.Tree{}, errors.New("the log's own signature is not the first")
	}
	origin, rest, _ := strings.Cut(opened.Text, "\n")
	if origin != s.log.Name() {
		return tlog.Tree{}, fmt.Errorf("the origin is %q", origin)
	}
	tree, err := tlog.ParseTree([]byte(treePrefix + rest))
	if err != nil || !s.strict {
		return tree, err
	}
	return tree, s.written(string(text), origin, tree, opened.Sigs)
}

// written checks that a note is what its values are written as, with cosignatures in the witnesses' order.
func (s signers) written(text, origin string, tree tlog.Tree, signatures []note.Signature) error {
	var want strings.Builder
	fmt.Fprintf(&want, "%s\n%s\n", origin, strings.TrimPrefix(string(tlog.FormatTree(tree)), treePrefix))
	next := 0
	for i, signature := range signatures {
		for i > 0 && next < len(s.witnesses) && s.witnesses[next].Name() != signature.Name {
			next++
		}
		if i > 0 && next == len(s.witnesses) {
			return errors.New("the cosignatures are not in the witnesses' order")
		}
		data, err := base64.StdEncoding.DecodeString(signature.Base64)
		if err != nil {
			return err
		}
		fmt.Fprintf(&want, "— %s %s\n", signature.Name, base64.StdEncoding.EncodeToString(data))
	}
	if text != want.String() {
		return errors.New("the note is not written in the one way")
	}
	return nil
}
