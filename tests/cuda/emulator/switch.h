// Stacks, and going from one to another: a few registers are exchanged, as swapcontext does without its system call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef EMU_ASAN
constexpr size_t STACK_BYTES = 512 * 1024;
#else
constexpr size_t STACK_BYTES = 128 * 1024;  // pages that are not touched cost nothing
#endif

struct Stack {
    unsigned char *low;
    size_t bytes;
};

// Stacks lie in one range of addresses, so that it is quickly seen what is on one.
constexpr size_t MOST_STACKS = 16384;
static unsigned char *stacks_begin, *stacks_next, *stacks_end;

static inline Stack stack_make() {
    size_t page = size_t(sysconf(_SC_PAGESIZE)), each = page + STACK_BYTES;
    if (!stacks_begin) {
        void *memory = mmap(nullptr, MOST_STACKS * each, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks_begin = stacks_next = static_cast<unsigned char *>(memory);
        stacks_end = stacks_begin + MOST_STACKS * each;
    }
    if (stacks_next == stacks_end) abort();
    unsigned char *low = stacks_next + page;  // the page below stays closed: what grows beyond is noticed
    if (mprotect(low, STACK_BYTES, PROT_READ | PROT_WRITE)) abort();
    stacks_next += each;
    return {low, STACK_BYTES};
}

static inline bool stacks_hold(const unsigned char *p) { return p >= stacks_begin && p < stacks_end; }

// The sanitizer alone asks: it means reading all of /proc/self/maps.
static inline Stack stack_of_caller() {
    void *low = nullptr;
    size_t bytes = 0;
#ifdef EMU_ASAN
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &low, &bytes);
    pthread_attr_destroy(&attributes);
#endif
    return {static_cast<unsigned char *>(low), bytes};
}

#ifdef __x86_64__
typedef struct { void *sp; } Context;

// Saves the callee's registers of the System V ABI on the stack, its address in *from, and takes up those of `to`.
extern "C" void emu_switch(void **from, void *to);
asm(".text\n.type emu_switch, @function\nemu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size emu_switch, . - emu_switch\n");

static inline Context context_make(const Stack &stack, void (*body)()) {
    void **top = reinterpret_cast<void **>(stack.low + stack.bytes) - 1;  // at body's entry the stack is 8 below a multiple of 16
    *top = nullptr;
    *--top = reinterpret_cast<void *>(body);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return {top};
}
#else
typedef struct { ucontext_t *u; } Context;

static inline Context context_make(const Stack &stack, void (*body)()) {
    ucontext_t *u = new (stack.low) ucontext_t();  // at the far end of the stack
    getcontext(u);
    u->uc_stack.ss_sp = stack.low + sizeof *u;
    u->uc_stack.ss_size = stack.bytes - sizeof *u;
    makecontext(u, body, 0);
    return {u};
}
static inline void emu_switch(ucontext_t **from, ucontext_t *to) {
    static thread_local ucontext_t main_place;
    if (!*from) *from = &main_place;
    swapcontext(*from, to);
}
#endif

#ifdef EMU_ASAN
static void *switch_fake;  // no fake stacks: detect_stack_use_after_return=0
static inline void switch_leaving(bool comes_back, const Stack &to) {
    __sanitizer_start_switch_fiber(comes_back ? &switch_fake : nullptr, to.low, to.bytes);
}
static inline void switch_arrived(const Stack &) { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
#else
static inline void switch_leaving(bool, const Stack &) {}
static inline void switch_arrived(const Stack &) {}
#endif

static inline void switch_to(Context &from, bool comes_back, Context &to, const Stack &stack) {
    switch_leaving(comes_back, stack);
#ifdef __x86_64__
    emu_switch(&from.sp, to.sp);
#else
    emu_switch(&from.u, to.u);
#endif
    switch_arrived(stack);
}

[[noreturn]] static inline void switch_for_good(Context &to, const Stack &stack) {
    Context nowhere = {};
    switch_to(nowhere, false, to, stack);
    abort();
}

// After a failure the fibers' frames are gone, but the sanitizer still guards them.
template <class StackOf> static inline void stacks_abandoned(size_t count, StackOf stack_of) {
#ifdef EMU_ASAN
    for (size_t i = 0; i < count; i++) __asan_unpoison_memory_region(stack_of(i).low, stack_of(i).bytes);
#else
    (void)count, (void)stack_of;
#endif
}

// A block's dynamic shared memory, of exactly the size asked for: behind it lies a page that cannot be touched.
struct SharedMemory {
    unsigned char *bytes = nullptr;
    size_t size = 0;
    unsigned char *mapping = nullptr;
    size_t mapped = 0, padding = 0;
    static constexpr unsigned char BEHIND = 0xa5;

    void renew(size_t wanted, unsigned char poison) {
        if (!bytes || wanted != size) {
            drop();
            size = wanted;
#ifdef EMU_ASAN
            if (posix_memalign(reinterpret_cast<void **>(&bytes), 128, size)) abort();
#else
            size_t page = size_t(sysconf(_SC_PAGESIZE)), used = (size + 15) / 16 * 16;
            mapped = (used + page - 1) / page * page + page;
            padding = used - size;
            mapping = static_cast<unsigned char *>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            if (mapping == MAP_FAILED) abort();
            mprotect(mapping + mapped - page, page, PROT_NONE);
            bytes = mapping + mapped - page - used;
            memset(bytes + size, BEHIND, padding);
#endif
        }
        memset(bytes, poison, size);
    }
    bool intact() const {
        for (size_t i = 0; i < padding; i++)
            if (bytes[size + i] != BEHIND) return false;
        return true;
    }
    void drop() {
        if (mapping) munmap(mapping, mapped);
        else free(bytes);
        mapping = bytes = nullptr;
        padding = 0;
    }
};

// Subnormal numbers read and written as zero while this lives, as -ftz=true has it.
struct FlushDenormals {
#ifdef __x86_64__
    unsigned before = __builtin_ia32_stmxcsr();
    FlushDenormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushDenormals() { __builtin_ia32_ldmxcsr(before); }
#endif
};
