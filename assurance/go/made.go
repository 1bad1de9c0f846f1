package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const mostProofs = 300 // of each kind; of a larger log the proofs are spread over it

// Made is a log of the library's own making, with its proofs for others to check.
type Made struct {
	Vkey       string  `json:"vkey"`
	Inclusion  []Proof `json:"inclusion"`
	Consistent []Proof `json:"consistent"`
}

// Proof is about the entry or the older size N; Root is that of the older size.
type Proof struct {
	N      int64       `json:"n"`
	Root   *tlog.Hash  `json:"root,omitempty"`
	Hashes []tlog.Hash `json:"hashes"`
}

// made writes a log of `size` entries to `folder`: a fresh key, then tree, tiles, note and proofs by the library.
func made(folder, origin string, size int64) (Made, error) {
	secret, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return Made{}, err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return Made{}, err
	}
	entries := make([][]byte, size)
	for i := range entries {
		entries[i] = fmt.Appendf(nil, "entry %d %s", i, strings.Repeat("x", i%40))
	}
	hashes, err := grow(entries)
	if err != nil {
		return Made{}, err
	}
	answer, err := proofs(size, hashes)
	if err != nil {
		return Made{}, err
	}
	answer.Vkey = vkey
	root, err := tlog.TreeHash(size, hashes)
	if err != nil {
		return Made{}, err
	}
	tree := tlog.Tree{N: size, Hash: root}
	body := strings.TrimPrefix(string(tlog.FormatTree(tree)), treePrefix)
	signed, err := note.Sign(&note.Note{Text: origin + "\n" + body}, signer)
	if err != nil {
		return Made{}, err
	}
	return answer, write(folder, entries, hashes, signed)
}

func proofs(size int64, hashes store) (Made, error) {
	answer := Made{Inclusion: []Proof{}, Consistent: []Proof{}}
	for n := int64(0); n < size; n += 1 + size/mostProofs {
		included, err := tlog.ProveRecord(size, n, hashes)
		if err != nil {
			return Made{}, err
		}
		consistent, err := tlog.ProveTree(size, n+1, hashes)
		if err != nil {
			return Made{}, err
		}
		root, err := tlog.TreeHash(n+1, hashes)
		if err != nil {
			return Made{}, err
		}
		answer.Inclusion = append(answer.Inclusion, Proof{n, nil, included})
		answer.Consistent = append(answer.Consistent, Proof{n + 1, &root, consistent})
	}
	return answer, nil
}

func write(folder string, entries [][]byte, hashes store, signed []byte) error {
	log := files{"checkpoint": signed}
	for _, tile := range bundles(int64(len(entries))) {
		var data []byte
		for _, entry := range entries[tile.N*width:][:tile.W] {
			data = append(binary.BigEndian.AppendUint16(data, uint16(len(entry))), entry...)
		}
		log[path(tile)] = data
	}
	for _, tile := range tlog.NewTiles(height, 0, int64(len(entries))) {
		data, err := tlog.ReadTileData(tile, hashes)
		if err != nil {
			return err
		}
		log[path(tile)] = data
	}
	for name, data := range log {
		file := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
