// What the scheduler knows of a launch: its threads, blocks and warps, and what they wait for.
#pragma once
#include "runtime.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "races.h"
#include "switch.h"

using emu::Launch;

namespace {

constexpr unsigned MOST_THREADS = 1024, BARRIERS = 16;
// Reads in vain, without any release or atomic by anyone in between, after which the values are taken never to come. About a second.
constexpr long MOST_POLLS = 10 * 1000 * 1000;
constexpr unsigned char POISON = 0xff;  // a NaN in every float format, -1 in whole numbers

struct Block;

struct Copy {
    void *to;
    const void *from;
    int size, read, group;
    const void *pc;
};

struct Fiber : emu::Self {
    Context context;
    Stack stack;
    Fiber *next;        // in the queue of those that can run, or of those that wait at a barrier
    Block *home;
    const char *waits;  // for what; null while it can run
    // what it brings to its warp's meeting
    unsigned mask;
    const void *deposit;
    void *result;
    emu::Finish finish;
    void *finish_context;
    int vote_result;
    bool alive;
    std::vector<Copy> copies;  // that have not been waited for
    int groups;                // committed so far
    races::Clock clock;        // of each thread of its scope: what of them has happened before
    unsigned number;           // in the launch, from 1 on
    bool fenced;               // __threadfence was called since the last atomic
};

struct Queue {
    Fiber *first = nullptr, *last = nullptr;
    void push(Fiber *fiber) {
        fiber->next = nullptr;
        (first ? last->next : first) = fiber;
        last = fiber;
    }
    Fiber *pop() {
        Fiber *fiber = first;
        if (fiber) first = fiber->next;
        return fiber;
    }
};

struct Barrier {
    Queue waiting;
    unsigned arrived = 0, expected = 0;  // expected 0: all that are alive
    int vote = 0, sum = 0;
    const char *name = nullptr;
    races::Clock clock;  // of those who came
};

struct Warp {
    Fiber *lane[32];
    unsigned alive, arrived;
};

struct Block {
    unsigned live;
    Barrier barrier[BARRIERS];
    Warp warp[MOST_THREADS / 32];
    std::vector<Fiber *> fibers;
    SharedMemory shared;
    unsigned number;
    std::vector<bool> known;  // blocks of a normal launch whose flags it has seen
};

const Launch *launch;
std::vector<Fiber *> pool;    // fibers of all launches so far, by order of their making; their stacks are kept
std::vector<Block *> blocks;  // likewise
Context main_context;
Stack main_stack;
Queue ready;
unsigned long live;  // threads of all blocks that run
long polls;
char message[2048];
bool failed;
#ifdef EMU_RACES
constexpr bool RACES = true;
#else
constexpr bool RACES = false;
#endif
races::Table table;

Fiber *self() { return static_cast<Fiber *>(emu::emu_self); }

unsigned threads_of_block() { return launch->block[0] * launch->block[1] * launch->block[2]; }

void describe(const Fiber *fiber, char *text, size_t size) {
    snprintf(text, size, "block (%u, %u, %u) thread (%u, %u, %u)", fiber->block_index.x, fiber->block_index.y, fiber->block_index.z,
             fiber->thread_index.x, fiber->thread_index.y, fiber->thread_index.z);
}

// The place of an instruction, for build.py to find its line.
void place(uintptr_t pc, char *text, size_t size) {
    Dl_info info;
    if (dladdr(reinterpret_cast<void *>(pc), &info) && info.dli_fname)
        snprintf(text, size, " [%s+%#lx]", info.dli_fname, long(pc - reinterpret_cast<uintptr_t>(info.dli_fbase)));
    else *text = 0;
}

}  // namespace
