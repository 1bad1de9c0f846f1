// Command logcheck checks the log of a run with the Go project's transparency log and signed notes
// (golang.org/x/mod/sumdb/tlog and note), which share nothing with the rest of this repository.
//
//	logcheck verify -vkey VKEY [-witness VKEY]… LOG   exit 0 when the log holds, 1 when not
//	logcheck flip -vkey VKEY [-witness VKEY]… [-every N] [-offset K] LOG
//	                                                  exit 0 when every flipped version is refused
//	logcheck make -origin ORIGIN -size N LOG          a log made by the library
//
// Each prints one JSON object. Exit code 2: the question could not be asked.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "logcheck:", err)
		code = 2
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	if len(args) == 0 {
		return 2, fmt.Errorf("expected verify, flip or make")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	vkey := flags.String("vkey", "", "the log's verifier key")
	by := signers{}
	flags.Func("witness", "the verifier key of a witness, in the order of the manifest", func(text string) error {
		known, err := newWitness(text)
		by.witnesses = append(by.witnesses, known)
		return err
	})
	origin := flags.String("origin", "", "make: the log's name")
	size := flags.Int64("size", 0, "make: number of entries")
	every := flags.Int("every", 1, "flip: one in so many bits")
	offset := flags.Int("offset", 0, "flip: the first bit")
	lenient := flags.Bool("lenient", false, "take any note that the library takes")
	if err := flags.Parse(args[1:]); err != nil {
		return 2, err
	}
	if flags.NArg() != 1 || *every < 1 || *offset < 0 || *size < 0 {
		return 2, fmt.Errorf("expected one folder and numbers that make sense")
	}
	folder := flags.Arg(0)
	if args[0] == "make" {
		answer, err := made(folder, *origin, *size)
		if err != nil {
			return 2, err
		}
		return 0, json.NewEncoder(os.Stdout).Encode(answer)
	}
	verifier, err := note.NewVerifier(*vkey)
	if err != nil {
		return 2, err
	}
	by.log, by.strict = verifier, !*lenient
	log, err := read(folder)
	if err != nil {
		return 2, err
	}
	switch args[0] {
	case "verify":
		verdict := check(log, by)
		return code(verdict.Accepted), json.NewEncoder(os.Stdout).Encode(verdict)
	case "flip":
		if verdict := check(log, by); !verdict.Accepted {
			return 2, fmt.Errorf("the log does not hold before any flip: %s", verdict.Refused)
		}
		flips := flip(log, by, *every, *offset)
		return code(len(flips.Accepted) == 0), json.NewEncoder(os.Stdout).Encode(flips)
	}
	return 2, fmt.Errorf("expected verify, flip or make, got %q", args[0])
}

func code(good bool) int {
	if good {
		return 0
	}
	return 1
}

// read loads every file of a log folder; what is neither file nor folder is refused.
func read(folder string) (files, error) {
	log := files{}
	return log, filepath.WalkDir(folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !entry.Type().IsRegular() {
			return fmt.Errorf("%s is not a file", name)
		}
		below, err := filepath.Rel(folder, name)
		if err != nil {
			return err
		}
		log[filepath.ToSlash(below)], err = os.ReadFile(name)
		return err
	})
}
