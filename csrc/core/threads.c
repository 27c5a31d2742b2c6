/* threads.c - the thread gateway over OpenMP.
 *
 * Three builds of one gateway: with OpenMP; without (every call on one thread); and, with FSQ_THREADS_PTHREAD, on plain pthreads,
 * for ThreadSanitizer only: it sees no synchronisation inside libgomp and would report every region as a race. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "threads.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../fastseq.h"

#if defined _OPENMP && !defined FSQ_THREADS_PTHREAD
#include <omp.h>
#define HAS_OPENMP 1
#else
#define HAS_OPENMP 0
#endif
#if HAS_OPENMP || defined FSQ_THREADS_PTHREAD
#define HAS_TEAMS 1
#else
#define HAS_TEAMS 0
#endif

/* ---------------------------------------------------------------- how many processors there are for us */

/* Processors that this process may run on. The mask grows until the kernel's fits: it has more than 1024 bits on some machines. */
static int affinity_count(void) {
#if defined __linux__
    for (int bits = 1024; bits <= 1 << 20; bits *= 4) {
        cpu_set_t *set = CPU_ALLOC(bits);
        if (!set) break;
        size_t bytes = CPU_ALLOC_SIZE(bits);
        int failed = sched_getaffinity(0, bytes, set), error = errno;
        int count = failed ? 0 : CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
        if (count > 0) return count;
        if (failed && error != EINVAL) break;
    }
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

enum { PATH_BYTES = 4096, LINE_BYTES = 8192 };

/* Reads the quota of the group whose directory is `path`: cpu.max holds "quota period" or "max period" (version 2), the older
 * pair of files one number each, -1 meaning none. Returns processors, rounded up, or 0. */
static int group_quota(const char *path, int version) {
    static const char *const quota_file[] = {"cpu.cfs_quota_us", "cpu.max"};
    char name[PATH_BYTES + 32];
    long long quota = 0, period = 0;
    snprintf(name, sizeof name, "%s/%s", path, quota_file[version - 1]);
    FILE *file = fopen(name, "re");
    if (!file) return 0;
    int found = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    if (version == 1 && found == 1) {
        snprintf(name, sizeof name, "%s/cpu.cfs_period_us", path);
        if (!(file = fopen(name, "re"))) return 0;
        found += fscanf(file, "%lld", &period) == 1;
        fclose(file);
    }
    return found == 2 && quota > 0 && period > 0 && quota <= INT32_MAX ? (int)((quota + period - 1) / period) : 0;
}

/* The least quota from the group at mount/relative up to the mount: a parent's quota binds its children. */
static int path_quota(const char *mount, const char *relative, int version) {
    char path[PATH_BYTES];
    int least = 0, length = snprintf(path, sizeof path, "%s%s", mount, relative);
    if (length < 0 || length >= PATH_BYTES) return 0;
    size_t top = strlen(mount);
    for (;;) {
        int quota = group_quota(path, version);
        if (quota && (!least || quota < least)) least = quota;
        char *slash = strrchr(path, '/');
        if (!slash || (size_t)(slash - path) < top) return least;
        *slash = 0;
    }
}

/* Is `word` in the list `words`, separated by commas? */
static int in_list(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = words; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == 0)) return 1;
    }
    return 0;
}

/* This process's group as /proc/self/cgroup tells it, a line "id:controllers:path" (version 2: "0::path"). Returns 1 if found. */
static int group_of_process(const char *root, int version, char group[PATH_BYTES]) {
    char line[LINE_BYTES];
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "re");
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        found = version == 2 ? strcmp(line, "0:") == 0 && !controllers[1] : in_list(controllers + 1, "cpu");
        if (found) snprintf(group, PATH_BYTES, "%s", path);
    }
    if (file) fclose(file);
    return found;
}

/* The quota in one hierarchy. /proc/self/mountinfo has a line per mount: "id parent device ROOT MOUNT options ... - TYPE source
 * SUPER_OPTIONS"; a container sees its own group as ROOT, which is then no part of the path below MOUNT. */
static int hierarchy_quota(const char *root, int version) {
    char line[LINE_BYTES], group[PATH_BYTES], top[PATH_BYTES], mount[PATH_BYTES], type[64], super[PATH_BYTES], path[PATH_BYTES];
    if (!group_of_process(root, version, group)) return 0;
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "re");
    int least = 0;
    while (file && fgets(line, sizeof line, file)) {
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %4095s %4095s", top, mount) != 2) continue;
        if (sscanf(rest, " - %63s %*s %4095s", type, super) != 2) continue;
        if (version == 2 ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0 || !in_list(super, "cpu")) continue;
        size_t shared = strcmp(top, "/") == 0 ? 0 : strlen(top);
        const char *below = strncmp(group, top, shared) == 0 && (group[shared] == '/' || !group[shared]) ? group + shared : "";
        if (snprintf(path, sizeof path, "%s%s", root, mount) >= PATH_BYTES) continue;
        int quota = path_quota(path, strcmp(below, "/") == 0 ? "" : below, version);
        if (quota && (!least || quota < least)) least = quota;
    }
    if (file) fclose(file);
    return least;
}

int fsq_threads_quota(const char *root) {
    int older = hierarchy_quota(root, 1), newer = hierarchy_quota(root, 2);
    return older && (!newer || older < newer) ? older : newer;
}

/* Processors that can really run at once for us: beyond this a waiting worker keeps another one from its core. */
static int processors(void) {
    static atomic_int known;
    int n = atomic_load_explicit(&known, memory_order_relaxed);
    if (!n) {
        int quota = fsq_threads_quota("");
        n = affinity_count();
        if (quota && quota < n) n = quota;
        atomic_store_explicit(&known, n, memory_order_relaxed);
    }
    return n;
}

/* ---------------------------------------------------------------- how many threads to use */

static atomic_int process_threads; /* 0: not decided yet */
static _Thread_local int local_threads;
static atomic_int always_threads;
static atomic_int forked; /* 1 in a forked child, for good */

/* A count from the environment, or 0 where there is none or it is not one. A list ("4,2": one number per level) gives its first. */
static int environment_count(const char *name, int list) {
    const char *text = getenv(name);
    char *end;
    if (!text || !*text) return 0;
    errno = 0;
    long value = strtol(text, &end, 10);
    end += strspn(end, " \t\r\n");
    if (errno || value < 1 || value > FSQ_THREADS_MOST || (*end && !(list && *end == ','))) return 0;
    return (int)value;
}

int fsq_threads_default(void) {
    if (!HAS_TEAMS) return 1;
    int ours = environment_count("FASTSEQ_NUM_THREADS", 0), openmp = environment_count("OMP_NUM_THREADS", 1);
    if (ours) return ours;
    int n = processors();
#if HAS_OPENMP
    if (omp_get_thread_limit() < n) n = omp_get_thread_limit();
#endif
    return openmp && openmp < n ? openmp : n;
}

int fsq_threads_get(void) {
    if (!HAS_TEAMS || atomic_load_explicit(&forked, memory_order_relaxed)) return 1;
    if (local_threads) return local_threads;
    int n = atomic_load_explicit(&process_threads, memory_order_relaxed);
    if (!n) {
        n = fsq_threads_default();
        int undecided = 0;
        if (!atomic_compare_exchange_strong(&process_threads, &undecided, n)) n = undecided;
    }
    return n;
}

void fsq_threads_set(int n) { atomic_store_explicit(&process_threads, n < 1 ? 1 : n, memory_order_relaxed); }

int fsq_threads_set_local(int n) {
    int before = local_threads;
    local_threads = n < 0 ? 0 : n;
    return before;
}

int fsq_threads_force(int on) { return atomic_exchange_explicit(&always_threads, on != 0, memory_order_relaxed); }

int fsq_has_openmp(void) { return HAS_OPENMP; }

/* When work pays for a team. Measured on 2 cores of an Intel Xeon at 2.5 GHz (gcc 12, libgomp): a chain of dependent additions on
 * one thread, and cut in two on two. Workers that still spin from the call before add 0.8 us (median): 4 us of work become 2.8, but a
 * worker whose core another process has taken costs that process's time slice, 3 ms: less than 3 us of gain is not worth the risk.
 * Workers that sleep, 8 ms after it, add 24 us and a cold start (tenth percentile): 64 us become 72, 100 become 90.
 * WORTH_PER_WORKER is an estimate: a runtime releases and collects its workers one by one, about 0.1 us each. */
#define WORTH_AWAKE 8000.0
#define WORTH_PER_WORKER 200.0
#define WORTH_ASLEEP 80000.0
#define STAY_AWAKE 1000000 /* ns; libgomp's workers spin 300 000 pauses after a region: 2.8 ms there, where a pause takes 11 cycles */

static _Atomic int64_t last_call; /* when a team was last used or wished for */

static int64_t nanoseconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t clock_now(void) { return nanoseconds_of(CLOCK_MONOTONIC); }

/* Another program on one of our cores keeps the whole team waiting at every barrier, and a worker that yields while it waits gives its
 * core away for a time slice: two threads then train an LSTM at half the speed of one or less. So a wait of LATE, at a barrier (only
 * a worker that had to yield takes the time) or for the end of a region, has the next regions looked at: workers with unequal shares
 * use their processors, workers without a core do not. Where a worker lost so much of LOOK that one thread would have been faster,
 * calls get one thread for twice the time that this took, and then a team to try again; from trial to trial the pauses double. So
 * threads of another library that spin a little after their own work (OpenBLAS: up to a tenth of a second) cost hardly more than that,
 * and a load that stays costs a tenth. More workers than processors is what the user asked for: that is never second-guessed. */
#define LATE 1000000          /* ns, as all of these */
#define LOSS_LEAST 500000     /* of one worker in one region: less is waking up, more is a time slice */
#define LOOK 10000000         /* time in regions until the verdict */
#define PAUSE_MOST 1000000000 /* or, if that is longer, PAUSE_PER_TRIAL times the trial */
#define PAUSE_PER_TRIAL 10
#define TEAM_EFFICIENCY 0.8   /* n threads that lose nothing do the work of 0.8 n */

static atomic_int suspected;          /* 1: somebody waited for long, look at the next regions */
static _Atomic int64_t alone_until;   /* one thread until then, and then a trial; 0: teams */

/* Does this machine's load leave us one thread at present? */
static int alone_now(int threads) {
    int64_t until = atomic_load_explicit(&alone_until, memory_order_relaxed);
    return until && threads <= processors() && clock_now() < until;
}

/* Either all the threads or one: a team that changes its size makes libgomp end threads and make new ones, which costs more than
 * workers with little to do. The first call after a pause does not wake them for little work; the second finds that calls come
 * close together, wakes them, and they stay awake. More workers than processors never spin. */
int fsq_threads_for(double nanoseconds, int threads) {
    if (atomic_load_explicit(&always_threads, memory_order_relaxed)) return threads;
    if (threads < 2 || !(nanoseconds >= WORTH_AWAKE + WORTH_PER_WORKER * (threads - 2))) return 1;
    if (alone_now(threads)) return 1;
    if (nanoseconds >= WORTH_ASLEEP) return threads;
    int64_t now = clock_now(), before = atomic_exchange_explicit(&last_call, now, memory_order_relaxed);
    return now - before < STAY_AWAKE && threads <= processors() ? threads : 1;
}

void fsq_share(const fsq_team *team, ptrdiff_t n, ptrdiff_t grain, ptrdiff_t *begin, ptrdiff_t *end) {
    ptrdiff_t grains = n / grain + (n % grain != 0), each = grains / team->size, more = grains % team->size, rank = team->rank;
    ptrdiff_t first = rank * each + (rank < more ? rank : more), last = first + each + (rank < more);
    *begin = first < grains ? first * grain : n;
    *end = last < grains ? last * grain : n;
}

/* ---------------------------------------------------------------- barrier */

/* Alone on its (pair of) cache lines: the workers poll it. */
struct fsq_barrier_state {
    _Alignas(128) atomic_uint epoch; /* how many barriers are complete; only its changes matter, it may wrap */
    atomic_uint arrived;
};

/* About 20 us where a pause takes 10 ns (AMD Zen), 100 us where it takes 50 ns (Intel since Skylake): longer than a
 * barrier of workers that all have a core ever waits for skew, shorter than a scheduler's time slice. */
#define SPINS 2000

static inline void pause_core(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("isb" ::: "memory"); /* about as long as a pause; `yield` is a no-op on most cores */
#endif
}

#if HAS_TEAMS
/* One set serves: one region runs at a time. A team of n workers has the n - 1 states from its first on: one for its own barrier, and
 * the rest for its groups, which need n - parts. Every barrier leaves its state with nobody arrived. */
static struct fsq_barrier_state barrier_states[FSQ_THREADS_MOST - 1];
#endif
static int barrier_spins; /* in the region that runs */

static void wait_for_change(struct fsq_barrier_state *state, unsigned epoch) {
    for (int i = barrier_spins; i > 0; i--) {
        if (atomic_load_explicit(&state->epoch, memory_order_acquire) != epoch) return;
        pause_core();
    }
    int64_t begin = clock_now();
    while (atomic_load_explicit(&state->epoch, memory_order_acquire) == epoch) sched_yield();
    if (clock_now() - begin >= LATE) atomic_store_explicit(&suspected, 1, memory_order_relaxed);
}

void fsq_barrier(const fsq_team *team) {
    if (team->size == 1) return;
    struct fsq_barrier_state *state = team->state;
    /* read before arriving: the epoch cannot change before this worker has arrived */
    unsigned epoch = atomic_load_explicit(&state->epoch, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&state->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)team->size) {
        atomic_store_explicit(&state->arrived, 0, memory_order_relaxed); /* seen with the epoch, before anyone arrives again */
        atomic_store_explicit(&state->epoch, epoch + 1, memory_order_release);
    } else {
        wait_for_change(state, epoch);
    }
}

int fsq_team_part(const fsq_team *team, int parts, fsq_team *part) {
    int each = team->size / parts, more = team->size % parts, in_larger = more * (each + 1);
    int index = team->rank < in_larger ? team->rank / (each + 1) : more + (team->rank - in_larger) / each;
    int first = index * each + (index < more ? index : more), size = each + (index < more);
    struct fsq_barrier_state *state = parts == 1 ? team->state : size == 1 ? NULL : team->state + 1 + (first - index);
    *part = (fsq_team){team->rank - first, size, state};
    return index;
}

/* ---------------------------------------------------------------- region */

#if HAS_TEAMS
static int64_t caller_done;         /* when rank 0 came to the end of the region */
static _Atomic int64_t worker_lost; /* in the region, by the worker that lost most */

/* Of the regions looked at since the last verdict; verdicts of one thread in a row. */
static int64_t look_time, look_lost;
static int lost_trials;

static void note_loss(int64_t lost) {
    int64_t most = atomic_load_explicit(&worker_lost, memory_order_relaxed);
    while (lost > most && !atomic_compare_exchange_weak_explicit(&worker_lost, &most, lost, memory_order_relaxed, memory_order_relaxed)) {
    }
}

/* After a region that was looked at. */
static void judge(int threads, int64_t begin, int64_t end) {
    look_time += end - begin;
    look_lost += atomic_exchange_explicit(&worker_lost, 0, memory_order_relaxed);
    if (look_time < LOOK) return;
    if ((double)look_lost > (1 - 1 / (TEAM_EFFICIENCY * threads)) * (double)look_time) {
        int64_t most = look_time * PAUSE_PER_TRIAL > PAUSE_MOST ? look_time * PAUSE_PER_TRIAL : PAUSE_MOST;
        int64_t pause = lost_trials < 10 ? look_time << ++lost_trials : most;
        atomic_store_explicit(&alone_until, end + (pause < most ? pause : most), memory_order_relaxed);
    } else {
        lost_trials = 0;
        atomic_store_explicit(&alone_until, 0, memory_order_relaxed);
        atomic_store_explicit(&suspected, 0, memory_order_relaxed);
    }
    look_time = look_lost = 0;
}

/* What each worker does in a region, which began at `begin` if it is looked at, else 0. Time before the worker ran counts as lost: it
 * may have been waiting for its core. */
static void run_worker(const fsq_team *team, int64_t begin, fsq_body body, void *context) {
    int64_t used = begin ? nanoseconds_of(CLOCK_THREAD_CPUTIME_ID) : 0;
    body(team, context);
    if (begin) {
        int64_t lost = clock_now() - begin - (nanoseconds_of(CLOCK_THREAD_CPUTIME_ID) - used);
        if (lost >= LOSS_LEAST) note_loss(lost);
    }
    if (team->rank == 0) caller_done = clock_now();
}
#endif

#if HAS_OPENMP
/* LLVM's and Intel's runtimes, whose workers spin 200 ms after a region unless told otherwise; libgomp has no such call. */
extern int kmp_get_blocktime(void) __attribute__((weak));
extern void kmp_set_blocktime(int milliseconds) __attribute__((weak));

/* Workers beyond `threads` leave at once: the region is always as wide as this thread's number, since libgomp, for a team of another
 * size than the last one, ends threads and makes new ones (measured: 2 and 4 in turn take 280 us and more, 4 alone 16). */
static void run_team(int threads, int64_t begin, fsq_body body, void *context) {
    int wide = fsq_threads_get(), limit = omp_get_thread_limit(), spin_before = kmp_get_blocktime ? kmp_get_blocktime() : 0;
    if (wide < threads) wide = threads;
    if (wide > limit) wide = limit; /* LLVM's runtime would print a warning */
    if (kmp_set_blocktime) kmp_set_blocktime(3);
#pragma omp parallel num_threads(wide)
    {
        int there = omp_get_num_threads();
        fsq_team team = {omp_get_thread_num(), there < threads ? there : threads, barrier_states};
        if (team.rank < team.size) run_worker(&team, begin, body, context);
    }
    if (kmp_set_blocktime) kmp_set_blocktime(spin_before); /* it belongs to the thread, and so to its other OpenMP code */
}
#elif HAS_TEAMS
/* For ThreadSanitizer: the same region with threads made for it alone. */
typedef struct {
    pthread_t thread;
    fsq_team team;
    int64_t begin;
    fsq_body body;
    void *context;
    atomic_int *size; /* 0 until it is known how many threads could be made */
} worker;

static void *work(void *argument) {
    worker *self = argument;
    while (!(self->team.size = atomic_load_explicit(self->size, memory_order_acquire))) sched_yield();
    run_worker(&self->team, self->begin, self->body, self->context);
    return NULL;
}

static void run_team(int threads, int64_t begin, fsq_body body, void *context) {
    static worker workers[FSQ_THREADS_MOST]; /* one region runs at a time */
    atomic_int size = 0;
    int made = 1;
    for (; made < threads; made++) {
        workers[made] = (worker){.team = {made, 0, barrier_states}, .begin = begin, .body = body, .context = context, .size = &size};
        if (pthread_create(&workers[made].thread, NULL, work, &workers[made]) != 0) break;
    }
    atomic_store_explicit(&size, made, memory_order_release);
    run_worker(&(fsq_team){0, made, barrier_states}, begin, body, context);
    for (int i = 1; i < made; i++) pthread_join(workers[i].thread, NULL);
}
#endif

#if HAS_TEAMS
static atomic_flag region_busy = ATOMIC_FLAG_INIT;

/* libgomp's workers do not survive a fork, and a region in the child would wait for them for ever. */
static void after_fork(void) { atomic_store_explicit(&forked, 1, memory_order_relaxed); }

/* When the library is loaded: no fork can come before it. */
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }
#endif

#if HAS_TEAMS
/* One team, alone in the process. Workers beyond the processors yield at once, and nobody looks at what they lose. */
static void run_region(int threads, fsq_body body, void *context) {
    int crowd = threads > processors(), spins = crowd ? 0 : SPINS;
    int doubted = atomic_load_explicit(&suspected, memory_order_relaxed) || atomic_load_explicit(&alone_until, memory_order_relaxed);
    int look = doubted && !crowd;
    int64_t begin = look ? clock_now() : 0;
    if (barrier_spins != spins) barrier_spins = spins; /* the workers have its cache line */
    run_team(threads, begin, body, context);
    int64_t end = clock_now();
    if (look) judge(threads, begin, end);
    else if (!crowd && end - caller_done >= LATE) atomic_store_explicit(&suspected, 1, memory_order_relaxed);
    atomic_store_explicit(&last_call, end, memory_order_relaxed);
}
#endif

void fsq_parallel(int threads, fsq_body body, void *context) {
#if HAS_TEAMS
    if (threads > 1 && !atomic_load_explicit(&forked, memory_order_relaxed) &&
        !atomic_flag_test_and_set_explicit(&region_busy, memory_order_acquire)) {
        run_region(threads < FSQ_THREADS_MOST ? threads : FSQ_THREADS_MOST, body, context);
        atomic_flag_clear_explicit(&region_busy, memory_order_release);
        return;
    }
#endif
    fsq_team alone = {0, 1, NULL};
    (void)threads;
    body(&alone, context);
}
