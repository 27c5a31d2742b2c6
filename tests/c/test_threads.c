/* test_threads.c - the thread gateway's own test program: shares, teams, barrier, groups, callers at the same time, fork, limits,
 * processors that other programs take, quota.
 *
 *   gcc -std=gnu11 -O2 -fopenmp tests/c/test_threads.c csrc/core/threads.c -o test_threads && ./test_threads
 *
 * Also without -fopenmp, and with -DFSQ_THREADS_PTHREAD -pthread for ThreadSanitizer: tests/c/run_threads.sh does them all. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/core/threads.h"
#include "../../csrc/fastseq.h"

#if defined _OPENMP || defined FSQ_THREADS_PTHREAD
#define TEAMS 1
#else
#define TEAMS 0
#endif
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { MOST = 8, HANG_SECONDS = 300 };

static atomic_int failures;

#define CHECK(condition, ...) ((condition) ? (void)0 : failed(__LINE__, #condition, __VA_ARGS__))
__attribute__((format(printf, 3, 4))) static void failed(int line, const char *condition, const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "test_threads.c:%d: %s: ", line, condition);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    atomic_fetch_add(&failures, 1);
}

/* ---------------------------------------------------------------- shares */

static void check_shares(int size, ptrdiff_t n, ptrdiff_t grain) {
    ptrdiff_t next = 0, least = PTRDIFF_MAX, most = 0;
    for (int rank = 0; rank < size; rank++) {
        ptrdiff_t begin = -1, end = -1, grains;
        fsq_share(&(fsq_team){rank, size, NULL}, n, grain, &begin, &end);
        CHECK(begin == next && end >= begin && end <= n, "rank %d of %d, n %td, grain %td: %td..%td", rank, size, n, grain,
              begin, end);
        CHECK(end == n || end % grain == 0, "rank %d of %d, n %td, grain %td: end %td", rank, size, n, grain, end);
        grains = (end - begin) / grain + ((end - begin) % grain != 0);
        least = grains < least ? grains : least;
        most = grains > most ? grains : most;
        next = end;
    }
    CHECK(next == n, "%d workers, n %td, grain %td: covered %td", size, n, grain, next);
    CHECK(most - least <= 1, "%d workers, n %td, grain %td: from %td to %td grains", size, n, grain, least, most);
}

static void test_shares(void) {
    for (int size = 1; size <= MOST; size++) {
        for (ptrdiff_t grain = 1; grain <= 17; grain++)
            for (ptrdiff_t n = 0; n <= 100; n++) check_shares(size, n, grain);
        check_shares(size, PTRDIFF_MAX, 1);
        check_shares(size, PTRDIFF_MAX, 16);
        check_shares(size, PTRDIFF_MAX - 20, PTRDIFF_MAX);
    }
}

/* ---------------------------------------------------------------- teams and the barrier */

typedef struct {
    int ran[MOST], size[MOST];
    pthread_t self[MOST];
} attendance;

static void attend(const fsq_team *team, void *context) {
    attendance *a = context;
    a->ran[team->rank]++;
    a->size[team->rank] = team->size;
    a->self[team->rank] = pthread_self();
}

static void test_teams(void) {
    for (int threads = 1; threads <= MOST; threads++) {
        attendance a = {0};
        int size = TEAMS ? threads : 1;
        fsq_parallel(threads, attend, &a);
        CHECK(pthread_equal(a.self[0], pthread_self()), "asked %d: rank 0 is not the caller", threads);
        for (int rank = 0; rank < MOST; rank++) {
            CHECK(a.ran[rank] == (rank < size), "asked %d: rank %d ran %d times", threads, rank, a.ran[rank]);
            CHECK(rank >= size || a.size[rank] == size, "asked %d: rank %d saw %d workers", threads, rank, a.size[rank]);
            for (int other = 0; other < rank && rank < size; other++)
                CHECK(!pthread_equal(a.self[rank], a.self[other]), "asked %d: ranks %d and %d are one thread", threads, rank, other);
        }
    }
}

/* A number above the cores is honoured, and a smaller team in a wider process has the workers that it asked for and no more. */
static void test_width(void) {
    int before = fsq_threads_get();
    fsq_threads_set(MOST);
    CHECK(fsq_threads_get() == (TEAMS ? MOST : 1), "got %d", fsq_threads_get());
    test_teams();
    fsq_threads_set(2);
    test_teams();
    fsq_threads_set(before);
}

static void note_size(const fsq_team *team, void *context) {
    if (team->rank == 0) *(int *)context = team->size;
    fsq_barrier(team);
}

enum { ROUNDS = SANITIZED ? 300 : 3000 };

typedef struct {
    long cell[MOST], wrong[MOST]; /* plain: the barrier alone orders them */
} rounds;

static void exchange(const fsq_team *team, void *context) {
    rounds *r = context;
    for (int round = 1; round <= ROUNDS; round++) {
        r->cell[team->rank] = round * MOST + team->rank;
        fsq_barrier(team);
        for (int rank = 0; rank < team->size; rank++) r->wrong[team->rank] += r->cell[rank] != round * MOST + rank;
        fsq_barrier(team);
    }
}

static void test_barrier(void) {
    for (int threads = 1; threads <= MOST; threads++) {
        rounds r = {{0}, {0}};
        fsq_parallel(threads, exchange, &r);
        for (int rank = 0; rank < threads; rank++)
            CHECK(!r.wrong[rank], "%d threads: rank %d saw %ld old values", threads, rank, r.wrong[rank]);
    }
}

typedef struct {
    int first[MOST], size[MOST], index[MOST]; /* of the group that each worker of the team found itself in */
    rounds rounds;
} groups;

/* The groups meet at barriers of their own, each a different number of times: one that waited for another would hang. */
static void exchange_in_groups(const fsq_team *team, int from, groups *g, int times) {
    for (int round = 1; round <= times; round++) {
        g->rounds.cell[from + team->rank] = round * MOST + team->rank;
        fsq_barrier(team);
        for (int rank = 0; rank < team->size; rank++)
            g->rounds.wrong[from + team->rank] += g->rounds.cell[from + rank] != round * MOST + rank;
        fsq_barrier(team);
    }
}

static void meet_in_groups(const fsq_team *team, void *context) {
    groups *all = context; /* one for each number of parts */
    for (int parts = 1; parts <= team->size; parts++) {
        groups *g = &all[parts];
        fsq_team part, half;
        for (int again = 0; again < 3; again++) { /* the same cut, without a barrier of the team between */
            int index = fsq_team_part(team, parts, &part), from = team->rank - part.rank;
            g->index[team->rank] = index;
            g->first[team->rank] = from;
            g->size[team->rank] = part.size;
            exchange_in_groups(&part, from, g, 5 * (index + 1));
            int side = fsq_team_part(&part, part.size > 1 ? 2 : 1, &half);
            exchange_in_groups(&half, team->rank - half.rank, g, 5 * (side + 1));
            fsq_barrier(&part);
            if (again == 1) fsq_barrier(team); /* the team's barrier works between the groups' */
        }
        fsq_barrier(team);
    }
}

static void test_groups(void) {
    for (int threads = 1; threads <= MOST; threads++) {
        static groups all[MOST + 1];
        int size = TEAMS ? threads : 1;
        memset(all, 0, sizeof all);
        fsq_parallel(threads, meet_in_groups, all);
        for (int parts = 1; parts <= size; parts++) {
            groups *g = &all[parts];
            int index = 0;
            for (int first = 0; first < size; first += g->size[first], index++)
                for (int rank = first; rank < first + g->size[first]; rank++) {
                    CHECK(g->first[rank] == first && g->index[rank] == index && g->size[rank] == g->size[first] &&
                              g->size[rank] == size / parts + (index < size % parts),
                          "%d of %d in %d parts: group %d from %d, %d workers", rank, size, parts, g->index[rank], g->first[rank],
                          g->size[rank]);
                    CHECK(!g->rounds.wrong[rank], "%d of %d in %d parts: %ld old values", rank, size, parts, g->rounds.wrong[rank]);
                }
            CHECK(index == parts, "%d workers in %d parts: %d groups", size, parts, index);
        }
    }
}

/* In a process of its own, which OpenMP allows three threads: teams are smaller than asked, and the barrier counts who is there. */
static int run_small(void) {
    int size = 0;
    fsq_parallel(MOST, note_size, &size);
    CHECK(size == 3, "%d workers, with a limit of 3", size);
    CHECK(fsq_threads_default() <= 3, "starts from %d, with a limit of 3", fsq_threads_default());
    test_barrier();
    return atomic_load(&failures) != 0;
}

static void test_smaller_team(const char *program) {
    if (!fsq_has_openmp()) return;
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        setenv("OMP_THREAD_LIMIT", "3", 1);
        execl("/proc/self/exe", program, "small", (char *)NULL);
        _exit(4);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "ended with status %#x", (unsigned)status);
}

/* ---------------------------------------------------------------- callers at the same time */

static void *call_from_thread(void *size) {
    fsq_parallel(4, note_size, size);
    return NULL;
}

static void call_inside(const fsq_team *team, void *context) {
    int *sizes = context;
    fsq_parallel(4, note_size, &sizes[team->rank]);
    if (team->rank != 0) return;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, call_from_thread, &sizes[MOST]) == 0, "no thread");
    pthread_join(other, NULL); /* would not return if that caller waited for this team */
}

static void test_nested(void) {
    int sizes[MOST + 1] = {0};
    fsq_parallel(4, call_inside, sizes);
    for (int rank = 0; rank < (TEAMS ? 4 : 1); rank++) CHECK(sizes[rank] == 1, "a call inside a region had %d workers", sizes[rank]);
    CHECK(sizes[MOST] == 1, "a caller beside a region had %d workers", sizes[MOST]);
    fsq_parallel(4, note_size, sizes);
    CHECK(sizes[0] == (TEAMS ? 4 : 1), "after the region: %d workers", sizes[0]);
}

typedef struct {
    long part[MOST * 16], sum;
} sums;

static void add_up(const fsq_team *team, void *context) {
    sums *s = context;
    ptrdiff_t begin, end;
    long sum = 0;
    fsq_share(team, 1000, 8, &begin, &end);
    for (ptrdiff_t i = begin; i < end; i++) sum += i;
    s->part[team->rank * 16] = sum;
    fsq_barrier(team);
    if (team->rank != 0) return;
    for (int rank = 0; rank < team->size; rank++) s->sum += s->part[rank * 16];
}

static void *keep_adding(void *wrong) {
    for (int i = 0; i < ROUNDS / 10; i++) {
        sums s = {{0}, 0};
        fsq_parallel(1 + i % 4, add_up, &s);
        *(long *)wrong += s.sum != 1000 * 999 / 2;
    }
    return NULL;
}

static void test_concurrent(void) {
    pthread_t caller[4];
    long wrong[4] = {0};
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&caller[i], NULL, keep_adding, &wrong[i]) == 0, "no thread");
    for (int i = 0; i < 4; i++) {
        pthread_join(caller[i], NULL);
        CHECK(!wrong[i], "caller %d: %ld wrong sums", i, wrong[i]);
    }
}

/* ---------------------------------------------------------------- fork */

static void exit_as_child(void) {
    int size = 0;
    alarm(30); /* a hang kills the child, and the parent sees a signal */
    fsq_parallel(4, note_size, &size);
    if (size != 1 || fsq_threads_get() != 1) _exit(2);
    pid_t child = fork();
    if (child == 0) {
        alarm(30);
        fsq_parallel(4, note_size, &size);
        _exit(size != 1);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status) _exit(3);
    if (SANITIZED) _exit(0); /* a leak check would miss the threads that hold the memory, and archer's clean-up crashes in a child */
    exit(0); /* with the runtime's own clean-up */
}

static void fork_and_wait(const char *when) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) exit_as_child();
    CHECK(child > 0 && waitpid(child, &status, 0) == child, "%s: no child", when);
    CHECK(status == 0, "%s: the child ended with status %#x", when, (unsigned)status);
}

static atomic_int stop;

static void *keep_using(void *unused) {
    int size;
    while (!atomic_load(&stop)) fsq_parallel(2, note_size, &size);
    return unused;
}

static void fork_inside(const fsq_team *team, void *context) {
    (void)context;
    fsq_barrier(team);
    if (team->rank == team->size - 1) fork_and_wait("inside a region");
    fsq_barrier(team);
}

static void test_fork(void) {
    int size;
    fork_and_wait("before or between regions");
    fsq_parallel(4, note_size, &size);
    fork_and_wait("after a region");
    fsq_parallel(2, fork_inside, NULL);
    pthread_t user;
    atomic_store(&stop, 0);
    CHECK(pthread_create(&user, NULL, keep_using, NULL) == 0, "no thread");
    for (int i = 0; i < 20; i++) fork_and_wait("while another thread is in and out of regions");
    atomic_store(&stop, 1);
    pthread_join(user, NULL);
    fsq_parallel(4, note_size, &size);
    CHECK(size == (TEAMS ? 4 : 1), "the parent afterwards: %d workers", size);
}

/* ---------------------------------------------------------------- numbers of threads */

static void *own_number(void *unused) {
    CHECK(fsq_threads_get() == 3, "a new thread starts from the process's number, got %d", fsq_threads_get());
    CHECK(fsq_threads_set_local(2) == 0, "a new thread has a number of its own");
    CHECK(fsq_threads_get() == 2, "got %d", fsq_threads_get());
    return unused;
}

static void test_numbers(void) {
    int before = fsq_threads_get();
    fsq_threads_set(3);
    if (TEAMS) {
        pthread_t other;
        CHECK(fsq_threads_set_local(5) == 0, "there was a local number");
        CHECK(fsq_threads_get() == 5, "got %d", fsq_threads_get());
        CHECK(pthread_create(&other, NULL, own_number, NULL) == 0, "no thread");
        pthread_join(other, NULL);
        CHECK(fsq_threads_set_local(0) == 5, "the other thread changed this one's number");
        CHECK(fsq_threads_get() == 3, "got %d", fsq_threads_get());
    }
    CHECK(fsq_threads_get() == (TEAMS ? 3 : 1), "got %d", fsq_threads_get());
    fsq_threads_set(before);
}

static double milliseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* Asks again and again: the load of this machine may have left us one thread for a while. */
static int most_for(double nanoseconds, int threads) {
    int most = 1;
    for (double end = milliseconds(CLOCK_MONOTONIC) + 60e3; most == 1 && milliseconds(CLOCK_MONOTONIC) < end;)
        most = fsq_threads_for(nanoseconds, threads);
    return most;
}

static void test_work(void) {
    CHECK(fsq_threads_force(1) == 0, "was forced");
    CHECK(fsq_threads_for(0, 5) == 5, "forced: %d", fsq_threads_for(0, 5));
    CHECK(fsq_threads_force(0) == 1, "was not forced");
    CHECK(fsq_threads_for(100, 5) == 1, "100 ns: %d", fsq_threads_for(100, 5));
    CHECK(fsq_threads_for(NAN, 5) == 1, "NaN: %d", fsq_threads_for(NAN, 5));
    CHECK(most_for(1e9, 5) == 5, "1 s: %d", fsq_threads_for(1e9, 5));
    CHECK(fsq_threads_for(INFINITY, 1) == 1, "1 thread: %d", fsq_threads_for(INFINITY, 1));
}

/* Work that pays only for workers who are awake: the first call after a pause leaves them asleep, a later one that follows closely
 * wakes them (not always the second: this program may lose its core between two calls), more workers than processors never pay. */
static void test_work_after_a_pause(void) {
    for (int i = 0; i < 3; i++) {
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        CHECK(fsq_threads_for(20e3, 2) == 1, "5 ms after the last call: %d", fsq_threads_for(20e3, 2));
    }
    int crowd = (int)sysconf(_SC_NPROCESSORS_CONF) + 1;
    CHECK(fsq_threads_default() == 1 || most_for(20e3, 2) == 2, "a minute of calls in a row, and no team");
    for (int i = 0; i < 1000; i++) CHECK(fsq_threads_for(20e3, crowd) == 1, "%d workers: worth it", crowd);
}

/* ---------------------------------------------------------------- a processor that another program takes */

/* A worker that sleeps inside a region looks like one whose core was taken: time passes, processor time does not. */
static void lose_core(const fsq_team *team, void *unused) {
    (void)unused;
    if (team->rank == team->size - 1) nanosleep(&(struct timespec){0, 3000000}, NULL);
    fsq_barrier(team);
}

static void test_lost_core(void) {
    if (fsq_threads_default() < 2) return;
    int alone = 0, crowd = (int)sysconf(_SC_NPROCESSORS_CONF) + 1;
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < 100 && !alone; i++) {
            fsq_parallel(2, lose_core, NULL);
            alone = fsq_threads_for(1e9, 2) == 1;
        }
        CHECK(alone, "100 regions lost their time, and the next would be a team");
        CHECK(fsq_threads_for(1e9, crowd) == crowd, "more workers than processors: second-guessed");
        fsq_threads_force(1);
        CHECK(fsq_threads_for(0, 2) == 2, "forced: second-guessed");
        fsq_threads_force(0);
        CHECK(most_for(1e9, 2) == 2, "no trial in a minute");
        alone = 0;
    }
}

typedef struct {
    double begin, lost[2];
} unequal;

/* The last worker has all the work. What the workers lose to other programs is measured here too. */
static void work_unequally(const fsq_team *team, void *context) {
    unequal *u = context;
    double used = milliseconds(CLOCK_THREAD_CPUTIME_ID);
    while (team->rank == team->size - 1 && milliseconds(CLOCK_THREAD_CPUTIME_ID) < used + 3) {
    }
    fsq_barrier(team);
    u->lost[team->rank] = milliseconds(CLOCK_MONOTONIC) - u->begin - (milliseconds(CLOCK_THREAD_CPUTIME_ID) - used);
}

/* Waiting for a worker with more work is no sign of another program. Counts only where this test lost next to nothing to one. */
static void test_unequal_shares(void) {
    if (fsq_threads_default() < 2) return;
    for (int attempt = 0, fair = 0; attempt < 50 && !fair; attempt++) {
        fair = 1;
        for (int i = 0; i < 9; i++) {
            unequal u = {milliseconds(CLOCK_MONOTONIC), {0}};
            fsq_parallel(2, work_unequally, &u);
            fair = fair && u.lost[0] < 0.3 && u.lost[1] < 0.3;
        }
        CHECK(!fair || fsq_threads_for(1e9, 2) == 2, "unequal shares, and the next call is alone");
    }
}

static void environment(const char *ours, const char *openmp) {
    ours ? setenv("FASTSEQ_NUM_THREADS", ours, 1) : unsetenv("FASTSEQ_NUM_THREADS");
    openmp ? setenv("OMP_NUM_THREADS", openmp, 1) : unsetenv("OMP_NUM_THREADS");
}

static void test_environment(void) {
    environment(NULL, NULL);
    int machine = fsq_threads_default();
    static const struct { const char *ours, *openmp; int expected; } cases[] = { /* 0: as without any */
        {"7", NULL, 7}, {"7", "1", 7}, {" 7 ", "1", 7}, {NULL, "1", 1}, {NULL, "1,4", 1}, {NULL, "1 , 4", 1},
        {NULL, "999999", 0}, {NULL, "1000", 0}, {"", "", 0}, {"x", "y", 0}, {"0", "0", 0}, {"-3", "-3", 0}, {"2.5", "1.5", 0},
        {"3,2", NULL, 0}, {"4x", "1x", 0}, {"99999999999999999999", "99999999999999999999", 0}, {"x", "1", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        environment(cases[i].ours, cases[i].openmp);
        int expected = TEAMS ? cases[i].expected ? cases[i].expected : machine : 1;
        CHECK(fsq_threads_default() == expected, "FASTSEQ_NUM_THREADS %s, OMP_NUM_THREADS %s: %d, not %d",
              cases[i].ours ? cases[i].ours : "unset", cases[i].openmp ? cases[i].openmp : "unset", fsq_threads_default(), expected);
    }
    environment(NULL, NULL);
    CHECK(machine >= 1 && machine <= sysconf(_SC_NPROCESSORS_CONF), "the machine's number is %d", machine);
}

/* ---------------------------------------------------------------- quota of a control group */

static char tree[] = "/tmp/fsq_groups_XXXXXX";

static void write_file(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s%s", tree, name);
    for (char *at = path + sizeof tree; (at = strchr(at, '/')); at++) {
        *at = 0;
        mkdir(path, 0700);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    CHECK(file != NULL, "cannot write %s", path);
    if (!file) return;
    fputs(text, file);
    fclose(file);
}

#define V2_MOUNT "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNTS                                                                 \
    "31 23 0:27 / /sys/fs/cgroup/cpuset rw shared:7 - cgroup cgroup rw,cpuset\n" \
    "32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:8 master:1 - cgroup cgroup rw,cpu,cpuacct\n"

static void expect_quota(int expected, const char *what) {
    CHECK(fsq_threads_quota(tree) == expected, "%s: %d, not %d", what, fsq_threads_quota(tree), expected);
}

static void test_quota_2(void) {
    write_file("/proc/self/mountinfo", "23 1 0:20 / / rw - ext4 /dev/vda rw\n" V2_MOUNT);
    write_file("/proc/self/cgroup", "0::/user.slice/job\n");
    expect_quota(0, "no file");
    write_file("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
    expect_quota(0, "max");
    write_file("/sys/fs/cgroup/user.slice/job/cpu.max", "250000 100000\n");
    expect_quota(3, "2.5 processors, rounded up");
    write_file("/sys/fs/cgroup/user.slice/cpu.max", "200000 100000\n");
    expect_quota(2, "the parent's is less");
    write_file("/sys/fs/cgroup/user.slice/cpu.max", "800000 100000\n");
    expect_quota(3, "the parent's is more");
    write_file("/sys/fs/cgroup/user.slice/job/cpu.max", "1000 100000\n");
    expect_quota(1, "a hundredth of a processor");
    write_file("/sys/fs/cgroup/user.slice/job/cpu.max", "nonsense");
    expect_quota(8, "nonsense counts for nothing");
    write_file("/proc/self/cgroup", "0::/\n");
    write_file("/sys/fs/cgroup/cpu.max", "400000 100000\n");
    expect_quota(4, "a container that sees its group as the root");
    write_file("/proc/self/mountinfo", "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    write_file("/proc/self/cgroup", "0::/docker/abc/inner\n");
    write_file("/sys/fs/cgroup/inner/cpu.max", "100000 100000\n");
    expect_quota(1, "a group below the mount's root");
}

static void test_quota_1(void) {
    write_file("/proc/self/mountinfo", V1_MOUNTS);
    write_file("/proc/self/cgroup", "12:cpuset:/elsewhere\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n");
    write_file("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n");
    expect_quota(0, "only a period");
    write_file("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1\n");
    expect_quota(0, "-1");
    write_file("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "150000\n");
    expect_quota(2, "1.5 processors, rounded up");
    write_file("/sys/fs/cgroup/cpuset/elsewhere/cpu.cfs_quota_us", "1\n");
    write_file("/sys/fs/cgroup/cpuset/elsewhere/cpu.cfs_period_us", "1\n");
    expect_quota(2, "another controller's group");
    write_file("/proc/self/mountinfo", V1_MOUNTS V2_MOUNT);
    write_file("/proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n0::/inner\n");
    expect_quota(1, "both versions: the lesser");
}

static void test_quota(void) {
    CHECK(mkdtemp(tree) != NULL, "no directory");
    expect_quota(0, "no /proc");
    test_quota_2();
    test_quota_1();
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", tree);
    CHECK(system(command) == 0, "cannot remove %s", tree);
}

/* ---------------------------------------------------------------- idle afterwards */

/* Processor time, not time: other programs on the machine do not count. A worker that went on spinning would use it all. */
static void test_idle(void) {
    int size;
    for (int threads = 2; threads <= 4; threads += 2) {
        for (int i = 0; i < 100; i++) fsq_parallel(threads, note_size, &size);
        double before = milliseconds(CLOCK_PROCESS_CPUTIME_ID);
        nanosleep(&(struct timespec){0, 300000000}, NULL);
        double busy = milliseconds(CLOCK_PROCESS_CPUTIME_ID) - before;
        CHECK(busy < 10.0 * (threads - 1), "%d threads: busy for %.1f ms after the call", threads, busy);
    }
}

int main(int count, char **arguments) {
    alarm(HANG_SECONDS);
    if (count > 1) return run_small();
    test_environment();
    test_quota();
    test_shares();
    test_teams();
    test_width();
    test_barrier();
    test_groups();
    test_smaller_team(arguments[0]);
    test_nested();
    test_concurrent();
    test_numbers();
    test_work();
    test_work_after_a_pause();
    test_lost_core();
    test_unequal_shares();
    if (!SANITIZED) test_idle(); /* a sanitizer has threads of its own */
    test_fork();
    if (atomic_load(&failures)) return 1;
    printf("threads: ok (%s)\n", fsq_has_openmp() ? "OpenMP" : TEAMS ? "pthreads" : "one thread");
    return 0;
}
