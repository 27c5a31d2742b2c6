// The scheduler: CUDA threads as fibers, their barriers, and what is reported when they cannot go on.
#include "order.h"

namespace {

[[noreturn]] void leave() {  // to emu_run, for good: the stacks of all fibers are dropped
    emu::emu_self = nullptr;
    switch_for_good(main_context, main_stack);
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
        if (RACES) races::join(fiber->clock, barrier.clock);
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
    if (RACES && !strcmp(any->waits, "__syncwarp")) {  // the others put no accesses to memory in order
        races::Clock together;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) come(together, warp.lane[i]);
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) races::join(warp.lane[i]->clock, together);
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
    settle();
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

void start(size_t slot, unsigned number, size_t first_fiber) {
    while (blocks.size() <= slot) blocks.push_back(new Block());
    Block *block = blocks[slot];
    unsigned threads = threads_of_block(), all = launch->grid[0] * launch->grid[1] * launch->grid[2];
    block->live = threads;
    block->number = number;
    for (Barrier &barrier : block->barrier) barrier = Barrier();
    block->fibers.clear();
    block->shared.renew(launch->shared, POISON);
    if (RACES) {
        block->known.assign(all, false);
        table.forget(block->shared.bytes, launch->shared);
    }
    for (unsigned i = 0; i < threads; i++) {
        Fiber *fiber = fiber_of(first_fiber + i);
        fiber->thread_index = {i % launch->block[0], i / launch->block[0] % launch->block[1], i / launch->block[0] / launch->block[1]};
        fiber->block_index = {number % launch->grid[0], number / launch->grid[0] % launch->grid[1], number / launch->grid[0] / launch->grid[1]};
        fiber->number = number * threads + i + 1;
        fiber->fenced = false;
        fiber->lane = i % 32;
        fiber->shared = block->shared.bytes;
        fiber->home = block;
        fiber->waits = nullptr;
        fiber->mask = 0;
        fiber->alive = true;
        fiber->copies.clear();
        fiber->groups = 0;
        fiber->context = context_make(fiber->stack, body);
        if (RACES) {
            fiber->clock.assign(launch->cooperative ? all * threads : threads, 0);
            tick(fiber);
        }
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

void on_signal(int number, siginfo_t *info, void *context) {
    if (emu::emu_self) {  // the fault of a kernel: its stack is left where it is
        char who[128], where[512] = "";
        describe(self(), who, sizeof who);
#ifdef __x86_64__
        place(uintptr_t(static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP]), where, sizeof where);
#endif
        snprintf(message, sizeof message, "%s: %s at %p%s", who,
                 number == SIGSEGV ? "access outside of any array, or a misaligned one" : number == SIGFPE ? "division of a whole number by zero" : "misaligned access, or an index outside of a local array",
                 info->si_addr, where);
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

void arrive(const Copy &copy) {
    memcpy(copy.to, copy.from, size_t(copy.read));
    memset(static_cast<unsigned char *>(copy.to) + copy.read, 0, size_t(copy.size - copy.read));
}

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
    settle();
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
    settle();
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
    come(barrier.clock, fiber);
    fiber->mask = 0;
    fiber->waits = name;
    if (waits) barrier.waiting.push(fiber);
    release(fiber->home, barrier);
    if (waits) run_next();
    return fiber->vote_result;
}

void emu::emu_poll(const char *name) {
    settle();
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
    const void *pc = __builtin_return_address(0);
    emu_access(from, unsigned(read), 0, pc);  // the bytes change at any time from now on
    emu_access(to, unsigned(size), 1, pc);
    Copy copy = {to, from, size, read, self()->groups, pc};
    if (launch->backward) arrive(copy);  // else late: one order or the other shows who relies on what
    self()->copies.push_back(copy);
}

void emu::emu_copy_commit(void) { self()->groups++; }

void emu::emu_copy_wait(int but_last) {
    Fiber *fiber = self();
    size_t done = 0;
    for (; done < fiber->copies.size() && fiber->copies[done].group < fiber->groups - but_last; done++) {
        const Copy &copy = fiber->copies[done];
        emu_access(copy.from, unsigned(copy.read), 0, copy.pc);
        emu_access(copy.to, unsigned(copy.size), 1, copy.pc);
        if (!launch->backward) arrive(copy);
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
    size_t total = size_t(asked->grid[0]) * asked->grid[1] * asked->grid[2], threads = threads_of_block();
    table.begin();
    rewrite.bytes = nullptr;
    for (size_t i = 0; i < total && !failed; i++) {
        size_t slot = asked->cooperative ? i : 0;
        start(slot, unsigned(asked->backward ? total - 1 - i : i), slot * threads);
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
