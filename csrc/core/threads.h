/* threads.h - the thread gateway: the only way for an op to use more than one core.
 *
 * One parallel region per call (fsq_parallel), with a barrier of our own inside it (fsq_barrier). threads.c is the only file
 * that knows OpenMP. A call that comes while another caller is inside a region (a call from inside a region among them), and any
 * call in a forked child, runs on the calling thread alone: nobody waits for a team and nothing hangs. */
#ifndef FSQ_THREADS_H
#define FSQ_THREADS_H

#include <stddef.h>

/* The most threads that can be asked for: libgomp ends the process when the system refuses it a thread. */
enum { FSQ_THREADS_MOST = 1024 };

typedef struct fsq_team {
    int rank, size;                  /* 0 <= rank < size: this worker, and how many are really there */
    struct fsq_barrier_state *state; /* shared by the team; NULL where size is 1 */
} fsq_team;

typedef void (*fsq_body)(const fsq_team *team, void *context);

/* Runs body once on each worker of a team of at most `threads`; returns when all are done. Rank 0 is the calling thread. What the
 * caller wrote before is seen by every worker, and what the workers wrote is seen by the caller afterwards. */
void fsq_parallel(int threads, fsq_body body, void *context);

/* Waits until every worker of the team has come here; what each wrote before is then seen by all. Every worker of the team must
 * call it equally often. Spins for a bounded time, then yields the core while waiting. */
void fsq_barrier(const fsq_team *team);

/* Cuts a team into `parts` groups of consecutive ranks, 1 <= parts <= size, whose sizes differ by at most one, the larger first.
 * Returns the index of this worker's group and fills `part`: the worker's rank in it, its size and its barrier, which stops neither
 * another group nor the whole team. A group can be cut again. The same cut may be made again at any time; before the team is cut into
 * another number of parts, a barrier of the whole team must follow the groups' last ones. */
int fsq_team_part(const fsq_team *team, int parts, fsq_team *part);

/* How many threads to use for work that takes one thread about `nanoseconds`: 1 or `threads`. The threshold is measured, and higher
 * where the workers have gone to sleep since the last call. Where other programs hold our processors, so that a team is slower than
 * one thread, it is 1 for a while whatever the work, then a team once more to see; not if `threads` is more than the processors. */
int fsq_threads_for(double nanoseconds, int threads);

/* This worker's share of n items, in whole multiples of `grain` >= 1 (the last may be less): items *begin <= i < *end. The shares
 * follow each other in the order of the ranks, cover every item once and differ by at most one grain. */
void fsq_share(const fsq_team *team, ptrdiff_t n, ptrdiff_t grain, ptrdiff_t *begin, ptrdiff_t *end);

/* Processors that the control group's quota pays for, rounded up, or 0 where there is no quota. `root` stands before the paths of
 * /proc and of the mounted control groups: "" for this machine; the tests lay out a tree of their own. */
int fsq_threads_quota(const char *root);

#endif
