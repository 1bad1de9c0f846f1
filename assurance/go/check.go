package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	height     = 8
	width      = 1 << height
	bundle     = -1
	everyProof = 300 // logs up to this size have every older size proved, larger ones as many drawn
)

// Verdict is what a check of one log found; Refused names the first thing that does not hold.
type Verdict struct {
	Accepted      bool   `json:"accepted"`
	Refused       string `json:"refused"`
	Stage         string `json:"stage"`
	Origin        string `json:"origin"`
	Size          int64  `json:"size"`
	Root          string `json:"root"`
	Files         int    `json:"files"`
	Inclusions    int    `json:"inclusions"`
	Consistencies int    `json:"consistencies"`
	Heads         int    `json:"heads"`
}

// A refusal says at which stage a log was refused.
type refusal struct {
	stage string
	err   error
}

func (r *refusal) Error() string { return r.stage + ": " + r.err.Error() }

func refuse(stage, format string, args ...any) error {
	return &refusal{stage, fmt.Errorf(format, args...)}
}

// store holds the hashes of a tree by their storage index, as the library numbers them.
type store []tlog.Hash

func (s store) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index < 0 || index >= int64(len(s)) {
			return nil, errors.New("no such hash")
		}
		hashes[i] = s[index]
	}
	return hashes, nil
}

func grow(entries [][]byte) (store, error) {
	var hashes store
	for i, entry := range entries {
		more, err := tlog.StoredHashes(int64(i), entry, hashes)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, more...)
	}
	return hashes, nil
}

// files is a log folder in memory: path below log/, bytes.
type files map[string][]byte

// path of a tile in the tlog-tiles layout: without the height, and `entries` for bundles.
func path(tile tlog.Tile) string {
	parts := strings.SplitN(tile.Path(), "/", 3) // tile, 8, L/NNN
	return "tile/" + strings.Replace(parts[2], "data/", "entries/", 1)
}

func (f files) Height() int                         { return height }
func (f files) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		found, ok := f[path(tile)]
		if !ok {
			return nil, fmt.Errorf("there is no %s", path(tile))
		}
		data[i] = found
	}
	return data, nil
}

// split cuts an entry bundle into its entries.
func split(data []byte) ([][]byte, error) {
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 {
			return nil, errors.New("cut off in a length")
		}
		length := int(binary.BigEndian.Uint16(data))
		if len(data) < 2+length {
			return nil, errors.New("cut off in an entry")
		}
		entries = append(entries, data[2:2+length])
		data = data[2+length:]
	}
	return entries, nil
}

func bundles(size int64) []tlog.Tile {
	var tiles []tlog.Tile
	for n := int64(0); n*width < size; n++ {
		tiles = append(tiles, tlog.Tile{H: height, L: bundle, N: n, W: int(min(width, size-n*width))})
	}
	return tiles
}

func readEntries(log files, size int64) ([][]byte, error) {
	var entries [][]byte
	for _, tile := range bundles(size) {
		data, ok := log[path(tile)]
		if !ok {
			return nil, fmt.Errorf("there is no %s", path(tile))
		}
		inside, err := split(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path(tile), err)
		}
		if len(inside) != tile.W {
			return nil, fmt.Errorf("%s holds %d entries", path(tile), len(inside))
		}
		entries = append(entries, inside...)
	}
	return entries, nil
}

// check verifies a whole log; the verdict counts what was proved until the first refusal.
func check(log files, by signers) Verdict {
	verdict := Verdict{Files: len(log), Origin: by.log.Name()}
	err := verdict.run(log, by)
	verdict.Accepted = err == nil
	if err != nil {
		verdict.Refused = err.Error()
		var at *refusal
		if errors.As(err, &at) {
			verdict.Stage = at.stage
		}
	}
	return verdict
}

func (v *Verdict) run(log files, by signers) error {
	text, ok := log["checkpoint"]
	if !ok {
		return refuse("checkpoint", "there is none")
	}
	tree, err := by.open(text)
	if err != nil {
		return &refusal{"checkpoint", err}
	}
	v.Size, v.Root = tree.N, tree.Hash.String()
	if tree.N > int64(len(log))*width { // a signed size may be absurd
		return refuse("bundle", "%d files cannot hold %d entries", len(log), tree.N)
	}
	entries, err := readEntries(log, tree.N)
	if err != nil {
		return &refusal{"bundle", err}
	}
	own, err := grow(entries)
	if err != nil {
		return &refusal{"bundle", err}
	}
	if err := v.prove(log, tree, entries, own); err != nil {
		return err
	}
	if err := checkFiles(log, tree, own); err != nil {
		return err
	}
	return v.checkHeads(log, tree, entries, by)
}

// prove has the library read the tiles, which it authenticates by the signed root, and prove from them that
// each entry is included and that each older tree, whose root comes from the entries, is a prefix.
func (v *Verdict) prove(log files, tree tlog.Tree, entries [][]byte, own store) error {
	tiles := tlog.TileHashReader(tree, log)
	for i, entry := range entries {
		proof, err := tlog.ProveRecord(tree.N, int64(i), tiles)
		if err != nil {
			return refuse("tiles", "entry %d: %w", i, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, int64(i), tlog.RecordHash(entry)); err != nil {
			return refuse("inclusion", "entry %d: %w", i, err)
		}
		v.Inclusions++
	}
	for _, size := range olderSizes(tree.N) {
		root, err := tlog.TreeHash(size, own)
		if err != nil {
			return refuse("root", "%w", err)
		}
		proof, err := tlog.ProveTree(tree.N, size, tiles)
		if err != nil {
			return refuse("tiles", "size %d: %w", size, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, size, root); err != nil {
			return refuse("consistency", "size %d: %w", size, err)
		}
		v.Consistencies++
	}
	root, err := tlog.TreeHash(tree.N, own)
	if err != nil || root != tree.Hash {
		return refuse("root", "the entries give %v", root)
	}
	return nil
}

func olderSizes(size int64) []int64 {
	var sizes []int64
	if size <= everyProof {
		for m := int64(1); m <= size; m++ {
			sizes = append(sizes, m)
		}
		return sizes
	}
	dice := rand.New(rand.NewSource(size))
	for range everyProof {
		sizes = append(sizes, 1+dice.Int63n(size))
	}
	return append(sizes, 1, size)
}

// checkFiles compares every hash tile with what the entries give, and the names with those there must be.
func checkFiles(log files, tree tlog.Tree, own store) error {
	known := map[string]bool{"checkpoint": true}
	for _, tile := range bundles(tree.N) {
		known[path(tile)] = true
	}
	for _, tile := range tlog.NewTiles(height, 0, tree.N) {
		known[path(tile)] = true
		want, err := tlog.ReadTileData(tile, own)
		if err != nil {
			return refuse("tiles", "%s: %w", path(tile), err)
		}
		if got, ok := log[path(tile)]; !ok || string(got) != string(want) {
			return refuse("tiles", "%s is not what the entries give", path(tile))
		}
	}
	for name := range log {
		if !known[name] {
			return refuse("files", "%s does not belong there", name)
		}
	}
	return nil
}

// checkHeads opens the checkpoints that entries quote: each must be a prefix of the tree, and older than
// the entry that quotes it.
func (v *Verdict) checkHeads(log files, tree tlog.Tree, entries [][]byte, by signers) error {
	tiles := tlog.TileHashReader(tree, log)
	for i, entry := range entries {
		text := quotedHead(entry)
		if text == "" {
			continue
		}
		head, err := by.open([]byte(text))
		if err != nil {
			return refuse("heads", "entry %d: %w", i, err)
		}
		if head.N < 1 || head.N > int64(i) {
			return refuse("heads", "entry %d quotes a head of size %d", i, head.N)
		}
		proof, err := tlog.ProveTree(tree.N, head.N, tiles)
		if err != nil {
			return refuse("heads", "entry %d: %w", i, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, head.N, head.Hash); err != nil {
			return refuse("heads", "entry %d: %w", i, err)
		}
		v.Heads++
	}
	return nil
}

// quotedHead is the field `head` of the record in an envelope, if the entry is such a one.
func quotedHead(entry []byte) string {
	var envelope struct {
		Payload []byte `json:"payload"`
	}
	var statement struct {
		Predicate struct {
			Head string `json:"head"`
		} `json:"predicate"`
	}
	if json.Unmarshal(entry, &envelope) != nil || json.Unmarshal(envelope.Payload, &statement) != nil {
		return ""
	}
	return statement.Predicate.Head
}
