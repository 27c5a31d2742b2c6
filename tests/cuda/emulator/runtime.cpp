// The scheduler: CUDA threads as fibers, their barriers, and what is reported when they cannot go on.
#include "runtime.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

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

Fiber *self() { return static_cast<Fiber *>(emu::emu_self); }

[[noreturn]] void leave() {  // to emu_run, for good: the stacks of all fibers are dropped
    emu::emu_self = nullptr;
    switch_for_good(main_context, main_stack);
}

void describe(const Fiber *fiber, char *text, size_t size) {
    snprintf(text, size, "block (%u, %u, %u) thread (%u, %u, %u)", fiber->block_index.x, fiber->block_index.y, fiber->block_index.z,
             fiber->thread_index.x, fiber->thread_index.y, fiber->thread_index.z);
}

void explain_deadlock(const char *reason) {
    int used = snprintf(message, sizeof message, "deadlock: %s", reason);
    int shown = 0;
    const char *last = nullptr;
    for (Block *block : blocks)
        for (Fiber *fiber : block->fibers) {
            if (!fiber->alive || !fiber->waits || fiber->waits == last || shown == 8) continue;
            last = fiber->waits;  // a run of threads that wait for the same is shown once
            shown++;
            char who[128];
            describe(fiber, who, sizeof who);
            used += snprintf(message + used, sizeof message - used, "; %s waits at %s", who, fiber->waits);
            Barrier *barrier = nullptr;
            for (Barrier &candidate : block->barrier)
                if (candidate.arrived && candidate.name == fiber->waits) barrier = &candidate;
            if (barrier)
                used += snprintf(message + used, sizeof message - used, " (%u of %u threads came)", barrier->arrived,
                                 barrier->expected ? barrier->expected : block->live);
            else if (fiber->home && fiber->mask)
                used += snprintf(message + used, sizeof message - used, " (mask %08x)", fiber->mask);
        }
    failed = true;
}

void run_next() {  // the running fiber is in some queue, or has ended
    Fiber *next = ready.pop();
    if (!next) {
        explain_deadlock("no thread can go on");
        leave();
    }
    Fiber *from = self();
    if (next == from) return;
    emu::emu_self = next;
    switch_to(from->context, from->alive, next->context, next->stack);
}

void wait(const char *name) {
    self()->waits = name;
    run_next();
}

void wake(Fiber *fiber) {
    fiber->waits = nullptr;
    ready.push(fiber);
}

void release(Block *block, Barrier &barrier) {
    unsigned expected = barrier.expected ? barrier.expected : block->live;
    if (barrier.arrived < expected) return;
    if (barrier.arrived > expected) emu::emu_fail("%s: %u threads came to a barrier of %u", barrier.name, barrier.arrived, expected);
    int result = barrier.vote == emu::AND ? barrier.sum == int(barrier.arrived) : barrier.vote == emu::OR ? barrier.sum != 0 : barrier.sum;
    while (Fiber *fiber = barrier.waiting.pop()) {
        fiber->vote_result = result;
        wake(fiber);
    }
    barrier = Barrier();
}

// Ends the meeting of the lanes `mask` of a warp if all that are alive have come.
void meet(Warp &warp, unsigned mask) {
    unsigned lanes = mask & warp.alive;
    if (lanes & ~warp.arrived || !lanes) return;
    const void *deposits[32] = {};
    void *results[32] = {};
    Fiber *any = warp.lane[__builtin_ctz(lanes)];
    for (int i = 0; i < 32; i++) {
        if (!(lanes >> i & 1)) continue;
        Fiber *fiber = warp.lane[i];
        if (fiber->mask != mask) emu::emu_fail("%s: lane %d came with mask %08x, another with %08x", any->waits, i, fiber->mask, mask);
        if (strcmp(fiber->waits, any->waits)) emu::emu_fail("a warp's lanes met at %s and at %s", any->waits, fiber->waits);
        deposits[i] = fiber->deposit;
        results[i] = fiber->result;
    }
    any->finish(any->finish_context, deposits, results, lanes);
    warp.arrived &= ~lanes;
    for (int i = 0; i < 32; i++)
        if (lanes >> i & 1) wake(warp.lane[i]);
}

Warp &warp_of(Fiber *fiber) {
    unsigned index = fiber->thread_index.x + launch->block[0] * (fiber->thread_index.y + launch->block[1] * fiber->thread_index.z);
    return fiber->home->warp[index / 32];
}

void body() {  // of every fiber
    switch_arrived(self()->stack);
    launch->call(launch->arguments);
    Fiber *fiber = self();
    fiber->alive = false;
    fiber->home->live--;
    live--;
    polls = 0;
    Warp &warp = warp_of(fiber);
    warp.alive &= ~(1u << fiber->lane);
    for (int i = 0; i < 32; i++)  // those who waited for this one alone
        if (warp.arrived >> i & 1) meet(warp, warp.lane[i]->mask);
    for (Barrier &barrier : fiber->home->barrier)
        if (barrier.arrived && !barrier.expected) release(fiber->home, barrier);
    if (!live) leave();
    run_next();
    abort();
}

Fiber *fiber_of(size_t number) {
    while (pool.size() <= number) {
        Fiber *fiber = new Fiber();
        fiber->stack = stack_make();
        pool.push_back(fiber);
    }
    return pool[number];
}

void start(size_t slot, unsigned x, unsigned y, unsigned z, size_t first_fiber) {
    while (blocks.size() <= slot) blocks.push_back(new Block());
    Block *block = blocks[slot];
    unsigned threads = launch->block[0] * launch->block[1] * launch->block[2];
    block->live = threads;
    for (Barrier &barrier : block->barrier) barrier = Barrier();
    block->fibers.clear();
    block->shared.renew(launch->shared, POISON);
    for (unsigned i = 0; i < threads; i++) {
        Fiber *fiber = fiber_of(first_fiber + i);
        fiber->thread_index = {i % launch->block[0], i / launch->block[0] % launch->block[1], i / launch->block[0] / launch->block[1]};
        fiber->block_index = {x, y, z};
        fiber->lane = i % 32;
        fiber->shared = block->shared.bytes;
        fiber->home = block;
        fiber->waits = nullptr;
        fiber->mask = 0;
        fiber->alive = true;
        fiber->copies.clear();
        fiber->groups = 0;
        fiber->context = context_make(fiber->stack, body);
        Warp &warp = block->warp[i / 32];
        if (i % 32 == 0) warp.alive = warp.arrived = 0;
        warp.lane[i % 32] = fiber;
        warp.alive |= 1u << i % 32;
        block->fibers.push_back(fiber);
    }
    for (unsigned i = 0; i < threads; i++) ready.push(block->fibers[launch->backward ? threads - 1 - i : i]);
    live += threads;
}

void run_all() {  // until no fiber is alive
    Fiber *next = ready.pop();
    emu::emu_self = next;
    switch_to(main_context, true, next->context, next->stack);
}

void check_shared() {
    for (Block *block : blocks)
        if (!failed && !block->shared.intact()) {
            snprintf(message, sizeof message, "a block wrote behind its %llu bytes of shared memory", launch->shared);
            failed = true;
        }
}

void on_signal(int number, siginfo_t *info, void *) {
    if (emu::emu_self) {  // the fault of a kernel: its stack is left where it is
        char who[128];
        describe(self(), who, sizeof who);
        snprintf(message, sizeof message, "%s: %s at %p", who,
                 number == SIGSEGV ? "access outside of any array, or a misaligned one" : number == SIGFPE ? "division of a whole number by zero" : "misaligned access, or an index outside of a local array",
                 info->si_addr);
        failed = true;
        leave();
    }
    signal(number, SIG_DFL);
    raise(number);
}

#ifdef EMU_ASAN
void on_report(const char *report) {  // the kernel goes on, and the launch then fails
    const char *begin = strstr(report, "ERROR: ");
    if (!failed) snprintf(message, sizeof message, "%s", begin ? begin + 7 : report);
    failed = true;
}
#endif

struct Signals {  // while kernels run
    static constexpr int NUMBERS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction before[4];
    stack_t stack_before;
    Signals() {
        static unsigned char *memory = static_cast<unsigned char *>(malloc(1 << 17));
        stack_t stack = {};
        stack.ss_sp = memory;
        stack.ss_size = 1 << 17;
        sigaltstack(&stack, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 4; i++) sigaction(NUMBERS[i], &action, &before[i]);
    }
    ~Signals() {
        for (int i = 0; i < 4; i++) sigaction(NUMBERS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

}  // namespace

extern "C" {

void emu::emu_warp(const char *name, unsigned mask, const void *deposit, void *result, Finish finish, void *context) {
    Fiber *fiber = self();
    if (!(mask >> fiber->lane & 1)) emu_fail("%s: the calling lane %u is not in its mask %08x", name, fiber->lane, mask);
    fiber->mask = mask;
    fiber->deposit = deposit;
    fiber->result = result;
    fiber->finish = finish;
    fiber->finish_context = context;
    fiber->waits = name;
    Warp &warp = warp_of(fiber);
    warp.arrived |= 1u << fiber->lane;
    meet(warp, mask);
    run_next();
}

int emu::emu_barrier(const char *name, int id, int threads, int waits, int vote, int value) {
    Fiber *fiber = self();
    if (id < 0 || id >= int(BARRIERS)) emu_fail("%s: there are barriers 0 to 15, not %d", name, id);
    if (threads % 32) emu_fail("%s: a barrier is of whole warps, not of %d threads", name, threads);
    Barrier &barrier = fiber->home->barrier[id];
    if (barrier.arrived && (barrier.vote != vote || barrier.expected != unsigned(threads)))
        emu_fail("threads met at barrier %d for %s and for %s, or in different numbers", id, barrier.name, name);
    barrier.arrived++;
    barrier.expected = unsigned(threads);
    barrier.vote = vote;
    barrier.sum += value;
    barrier.name = name;
    fiber->mask = 0;
    fiber->waits = name;
    if (waits) barrier.waiting.push(fiber);
    release(fiber->home, barrier);
    if (waits) run_next();
    return fiber->vote_result;
}

void emu::emu_poll(const char *name) {
    if (++polls > MOST_POLLS) {
        self()->waits = name;
        explain_deadlock(launch->cooperative ? "a value that threads wait for is never written"
                                             : "a value that threads wait for is never written; blocks of a normal launch cannot wait for each other");
        leave();
    }
    Fiber *fiber = self();
    fiber->waits = name;
    ready.push(fiber);
    run_next();
    fiber->waits = nullptr;
}

void emu::emu_progress(void) { polls = 0; }

void emu::emu_check_shared(const char *name, const void *p, unsigned size, unsigned alignment) {
    const unsigned char *address = static_cast<const unsigned char *>(p), *low = emu_self->shared;
    if (address < low || address + size > low + launch->shared)
        emu_fail("%s: byte %ld is not in the %llu bytes of shared memory", name, long(address - low), launch->shared);
    if (reinterpret_cast<uintptr_t>(address) % alignment) emu_fail("%s: byte %ld of shared memory is not a multiple of %u", name, long(address - low), alignment);
}

void emu::emu_copy(const char *name, void *to, const void *from, int size, int read) {
    emu_check_shared(name, to, unsigned(size), unsigned(size));
    if (read < 0 || read > size) emu_fail("%s: %d bytes to be read", name, read);
    if (reinterpret_cast<uintptr_t>(from) % unsigned(size)) emu_fail("%s: %p is not a multiple of %d", name, from, size);
    self()->copies.push_back({to, from, size, read, self()->groups});
}

void emu::emu_copy_commit(void) { self()->groups++; }

void emu::emu_copy_wait(int but_last) {
    Fiber *fiber = self();
    size_t done = 0;
    for (; done < fiber->copies.size() && fiber->copies[done].group < fiber->groups - but_last; done++) {
        const Copy &copy = fiber->copies[done];
        memcpy(copy.to, copy.from, size_t(copy.read));
        memset(static_cast<unsigned char *>(copy.to) + copy.read, 0, size_t(copy.size - copy.read));
    }
    fiber->copies.erase(fiber->copies.begin(), fiber->copies.begin() + long(done));
}

void emu::emu_fail(const char *format, ...) {
    char text[1024], who[128] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (emu_self) describe(self(), who, sizeof who);
    snprintf(message, sizeof message, "%s: %s", who, text);
    failed = true;
    leave();
}

const char *emu::emu_run(const Launch *asked) {
    launch = asked;
    emu_grid = dim3(asked->grid[0], asked->grid[1], asked->grid[2]);
    emu_block = dim3(asked->block[0], asked->block[1], asked->block[2]);
    failed = false;
    live = 0;
    polls = 0;
    ready = Queue();
    for (Block *block : blocks) block->fibers.clear();
    Signals signals;
#ifdef EMU_ASAN
    __asan_set_error_report_callback(on_report);
#endif
    FlushDenormals flush;
    main_stack = stack_of_caller();
    size_t total = size_t(asked->grid[0]) * asked->grid[1] * asked->grid[2], threads = size_t(asked->block[0]) * asked->block[1] * asked->block[2];
    for (size_t i = 0; i < total && !failed; i++) {
        size_t b = asked->backward ? total - 1 - i : i;
        size_t slot = asked->cooperative ? i : 0;
        start(slot, b % asked->grid[0], b / asked->grid[0] % asked->grid[1], b / asked->grid[0] / asked->grid[1], slot * threads);
        if (!asked->cooperative) {
            run_all();
            check_shared();
        }
    }
    if (asked->cooperative) {
        run_all();
        check_shared();
    }
    if (failed) stacks_abandoned(pool.size(), [](size_t i) { return pool[i]->stack; });
    return failed ? message : nullptr;
}

}  // extern "C"

emu::Self *emu::emu_self;
dim3 emu::emu_grid, emu::emu_block;
