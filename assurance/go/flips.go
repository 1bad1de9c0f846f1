package main

import (
	"bytes"
	"maps"
	"slices"
	"sync"
)

const flippers = 2

// Flip is one changed bit: bit 0 is the lowest of byte 0.
type Flip struct {
	File string `json:"file"`
	Bit  int    `json:"bit"`
}

// Flips is what became of a log's flipped versions: how many there were and which were accepted.
type Flips struct {
	Tried    int            `json:"tried"`
	ByFile   map[string]int `json:"by_file"`
	ByStage  map[string]int `json:"by_stage"`
	Accepted []Flip         `json:"accepted"`
}

// flip checks a version of the log for every `every`-th bit of all its files, counted from `offset`.
func flip(log files, by signers, every, offset int) Flips {
	jobs := make(chan Flip, 1024)
	go func() {
		defer close(jobs)
		at := 0
		for _, name := range slices.Sorted(maps.Keys(log)) {
			for bit := range 8 * len(log[name]) {
				if at%every == offset%every {
					jobs <- Flip{name, bit}
				}
				at++
			}
		}
	}()
	total := Flips{ByFile: map[string]int{}, ByStage: map[string]int{}, Accepted: []Flip{}}
	var lock sync.Mutex
	var workers sync.WaitGroup
	for range flippers {
		workers.Add(1)
		go func() {
			defer workers.Done()
			mine := maps.Clone(log)
			for job := range jobs {
				mine[job.File] = bytes.Clone(log[job.File])
				mine[job.File][job.Bit/8] ^= 1 << (job.Bit % 8)
				verdict := check(mine, by)
				mine[job.File] = log[job.File]
				lock.Lock()
				total.Tried++
				total.ByFile[job.File]++
				if verdict.Accepted {
					total.Accepted = append(total.Accepted, job)
				} else {
					total.ByStage[verdict.Stage]++
				}
				lock.Unlock()
			}
		}()
	}
	workers.Wait()
	return total
}
