# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, freethreading_compatible=False
"""The binding: takes validated arrays, drops the GIL and calls C. No arithmetic lives here.

What does live here, because every call needs it: results and scratch. Results are fresh arrays. Scratch comes from an arena that
each thread keeps, since fresh megabytes per call would cost more in page faults than many an op takes.

Arrays that C needs dense are copied where they are not; `matmul` takes any strides. Every function reads the number of threads
once and gives it to the op and to the question how much scratch the op needs, which must agree.
"""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from numpy cimport (
    NPY_ARRAY_CARRAY_RO, NPY_DOUBLE, NPY_FLOAT, PyArray_DATA, PyArray_DIM, PyArray_DIMS, PyArray_EMPTY, PyArray_FROM_OTF, PyArray_ISBEHAVED_RO,
    PyArray_ISCARRAY, PyArray_ISCARRAY_RO, PyArray_NDIM, PyArray_SIZE, PyArray_SimpleNewFromData, PyArray_STRIDE, PyArray_TYPE, import_array, ndarray, npy_intp, set_array_base)

from fastseq._csrc cimport *

import numpy as np

import_array()

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t bytes)

cdef extern from *:
    """
    #if defined __linux__
    #include <sys/mman.h>
    #define prefer_huge_pages(memory, bytes) ((void)madvise(memory, bytes, MADV_HUGEPAGE))
    #else
    #define prefer_huge_pages(memory, bytes) ((void)0)
    #endif
    """
    void prefer_huge_pages(void *memory, size_t bytes) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned pthread_key_t
    int pthread_key_create(pthread_key_t *key, void (*destructor)(void *) noexcept nogil)
    void *pthread_getspecific(pthread_key_t key)
    int pthread_setspecific(pthread_key_t key, const void *value)

# The names of csrc/fastseq.h's fsq_function.
FUNCTIONS = {"identity": FSQ_IDENTITY, "exp": FSQ_EXP, "log": FSQ_LOG, "tanh": FSQ_TANH, "sigmoid": FSQ_SIGMOID, "relu": FSQ_RELU}
cdef str IDENTITY = "identity"

# ---------------------------------------------------------------- memory

cdef enum:
    LINE = 64               # bytes of a cache line, and of the widest register
    HUGE_PAGE = 2 << 20     # from this size on: 2 to 3 % faster where 6 to 32 MB of weights are streamed (Cascade Lake)
    ARENA_KEPT = 64 << 20   # the most scratch that a thread keeps between calls
    CACHE_LEAST = 32 << 20  # malloc keeps smaller arrays for the next call itself
    CACHES = 8              # how many larger ones that are no longer in use are kept,
    CACHES_KEPT = 256 << 20 # and how many bytes at most

cdef pthread_key_t arena_key
if pthread_key_create(&arena_key, free) != 0:
    raise MemoryError("no thread-local storage left")


cdef void *allocate(size_t bytes) except NULL:
    cdef size_t unit = LINE if bytes < HUGE_PAGE else HUGE_PAGE
    cdef void *memory = NULL
    if bytes < <size_t>1 << 62:
        bytes = (bytes + unit) & ~(unit - 1)
        memory = aligned_alloc(unit, bytes)
    if memory == NULL:
        raise MemoryError(f"could not allocate {bytes} bytes of scratch")
    if unit == HUGE_PAGE:
        prefer_huge_pages(memory, bytes)
    return memory


cdef void *scratch_take(size_t bytes) except NULL:
    """Scratch of at least `bytes` bytes, for one call of this thread; scratch_give takes it back."""
    cdef size_t *arena                              # [0] is its size; what is given out starts a line further
    cdef size_t size = 1 << 16
    if bytes > ARENA_KEPT:
        return allocate(bytes)
    arena = <size_t *>pthread_getspecific(arena_key)
    if arena == NULL or arena[0] < bytes:
        pthread_setspecific(arena_key, NULL)
        free(arena)
        while size < bytes:
            size *= 2
        arena = <size_t *>allocate(LINE + size)
        arena[0] = size
        if pthread_setspecific(arena_key, arena) != 0:
            free(arena)
            raise MemoryError("no thread-local storage left")
    return <char *>arena + LINE


cdef inline void scratch_give(void *scratch, size_t bytes) noexcept nogil:
    if bytes > ARENA_KEPT:
        free(scratch)


cdef struct Memory:
    void *start
    size_t bytes

cdef Memory kept[CACHES]
cdef size_t kept_bytes = 0


cdef class Cached:
    """The memory of an array that `empty_cache` gave out; when the array is gone it is kept for the next one."""

    cdef Memory memory

    def __dealloc__(self):
        global kept_bytes
        cdef int i
        for i in range(CACHES):
            if kept[i].start == NULL and kept_bytes + self.memory.bytes <= CACHES_KEPT:
                kept[i] = self.memory
                kept_bytes += self.memory.bytes
                return
        free(self.memory.start)


cdef ndarray empty_cache(int axes, npy_intp *dims, int type):
    """An array that forward fills and backward reads.

    A fresh large one would cost its page faults: with gates of 52 MB (T100 B64 H512) forward takes 210 ms, with kept memory 172 ms.
    """
    global kept_bytes
    cdef size_t bytes = 4 if type == NPY_FLOAT else 8
    cdef double size = bytes
    cdef int i
    cdef Cached owner
    cdef ndarray a
    for i in range(axes):
        size *= dims[i]
        bytes *= dims[i]
    if size < CACHE_LEAST or size > 2.0**62:
        return PyArray_EMPTY(axes, dims, type, 0)
    owner = Cached.__new__(Cached)
    for i in range(CACHES):
        if bytes <= kept[i].bytes <= bytes + bytes // 4:
            owner.memory = kept[i]
            kept_bytes -= kept[i].bytes
            kept[i] = Memory(NULL, 0)
            break
    else:
        owner.memory = Memory(allocate(bytes), bytes)
    a = PyArray_SimpleNewFromData(axes, dims, type, owner.memory.start)
    set_array_base(a, owner)
    return a


cdef inline bint is_single(ndarray a) noexcept nogil:
    return PyArray_TYPE(a) == NPY_FLOAT


cdef inline ndarray dense(ndarray a):
    """`a` in C order, aligned, in the machine's byte order: itself where it is so."""
    return a if PyArray_ISCARRAY_RO(a) else PyArray_FROM_OTF(a, PyArray_TYPE(a), NPY_ARRAY_CARRAY_RO)


cdef inline ndarray dense_or_none(ndarray a):
    return None if a is None else dense(a)


cdef inline void *pointer(ndarray a) noexcept nogil:
    return NULL if a is None else PyArray_DATA(a)


cdef inline ndarray empty_like(ndarray a):
    return PyArray_EMPTY(PyArray_NDIM(a), PyArray_DIMS(a), PyArray_TYPE(a), 0)


cdef ndarray empty(int type, tuple shape):
    cdef npy_intp dims[4]
    cdef int i
    for i in range(len(shape)):
        dims[i] = shape[i]
    return PyArray_EMPTY(<int>len(shape), dims, type, 0)


cdef inline void *writable(ndarray a) except? NULL:
    """The data of an array that an op changes where it lies."""
    if a is None:
        return NULL
    if not PyArray_ISCARRAY(a):
        raise ValueError("an array to be changed in place: expected a writable array in C order, got another")
    return PyArray_DATA(a)


cdef inline npy_intp last_axis(ndarray a) noexcept:
    return PyArray_DIM(a, PyArray_NDIM(a) - 1)


cdef inline npy_intp rows(ndarray a) noexcept:
    return PyArray_SIZE(a) / last_axis(a) if last_axis(a) else 0


# ---------------------------------------------------------------- process

def isa_select(name):
    """Use the instruction set of this name, or the best of the machine (None). Not while another thread computes."""
    cdef bytes text = (name or "").encode()
    cdef const char *wanted = text
    if name is None:
        wanted = NULL
    if fsq_isa_select(wanted) != 0:
        raise ValueError(f"instruction set: expected one of {', '.join(isas_available())}, which this machine can run, got {name!r}")


def isa_name():
    """The instruction set in use."""
    return fsq_isa_name().decode()


def isas_available():
    """The instruction sets of this build that this machine can run, worst first."""
    names, i = [], 0
    while fsq_isa_available(i) != NULL:
        names.append(fsq_isa_available(i).decode())
        i += 1
    return tuple(names)


def threads_get():
    """How many threads the next call from this thread may use."""
    return fsq_threads_get()


def threads_set(int n):
    """The process's number of threads, n >= 1."""
    fsq_threads_set(n)


def threads_set_local(int n):
    """This Python thread's own number, 0 for the process's; returns the previous one."""
    return fsq_threads_set_local(n)


def threads_default():
    """What the process starts from."""
    return fsq_threads_default()


def threads_force(bint on):
    """Whether ops use all their threads however small the work is (for tests); returns the previous setting."""
    return bool(fsq_threads_force(on))


def has_openmp():
    """Whether this build has OpenMP; without it every call runs on one thread."""
    return bool(fsq_has_openmp())


def philox(uint64_t key, counter):
    """Four 32-bit words of Philox4x32-10 for a key and a counter of four 32-bit words."""
    cdef uint32_t words[4]
    cdef uint32_t out[4]
    for i in range(4):
        words[i] = counter[i]
    fsq_philox(out, key, words)
    return out[0], out[1], out[2], out[3]


# ---------------------------------------------------------------- matmul

cdef class Panels:
    """Weights in the layout of one instruction set's kernels: a snapshot."""

    cdef void *memory
    cdef const char *isa
    cdef int type
    cdef readonly size_t size

    def __dealloc__(self):
        free(self.memory)

    cdef int reserve(self, int type, size_t size) except -1:
        self.memory = allocate(size * (4 if type == NPY_FLOAT else 8))
        self.type, self.size, self.isa = type, size, fsq_isa_name()
        return 0

    cdef inline int check(self) except -1:
        if self.isa != fsq_isa_name():
            raise RuntimeError(f"packed for {self.isa.decode()}, but {isa_name()} is in use: pack the weights again")
        return 0

    @property
    def dtype(self):
        return np.dtype(np.float32 if self.type == NPY_FLOAT else np.float64)

    def numpy(self):
        """A copy of what is in the panels, (size,)."""
        cdef ndarray a = empty(self.type, (self.size,))
        memcpy(PyArray_DATA(a), self.memory, self.size * (4 if self.type == NPY_FLOAT else 8))
        return a


cdef class MatmulPacked(Panels):
    """A right-hand operand (K, N) in panels."""

    cdef npy_intp K, N

    @property
    def shape(self):
        return self.K, self.N


cdef inline ndarray strided(ndarray a):
    """`a` with strides that are whole elements, aligned, in the machine's byte order: itself where it is so."""
    cdef npy_intp mask = 3 if PyArray_TYPE(a) == NPY_FLOAT else 7
    cdef bint whole = PyArray_ISBEHAVED_RO(a)
    cdef int i
    for i in range(PyArray_NDIM(a)):
        whole = whole and PyArray_STRIDE(a, i) & mask == 0
    return a if whole else dense(a.copy())


cdef inline npy_intp stride(ndarray a, int axis) noexcept nogil:
    return PyArray_STRIDE(a, axis) >> (2 if PyArray_TYPE(a) == NPY_FLOAT else 3)


def matmul_pack(ndarray b not None):
    """b (K, N), any strides, in panels."""
    cdef MatmulPacked packed = MatmulPacked.__new__(MatmulPacked)
    cdef int threads = fsq_threads_get()
    b = strided(b)
    packed.K, packed.N = PyArray_DIM(b, 0), PyArray_DIM(b, 1)
    packed.reserve(PyArray_TYPE(b), matmul_packed_size_c(is_single(b), packed.N, packed.K))
    with nogil:
        matmul_pack_c(is_single(b), packed.memory, PyArray_DATA(b), packed.N, packed.K, stride(b, 0), stride(b, 1), threads)
    return packed


def matmul(ndarray a not None, b, ndarray bias, str function):
    """f(a b + bias) for a (M, K) and b (K, N), b perhaps packed; None where either has more axes. Any strides."""
    cdef MatmulPacked packed
    if PyArray_NDIM(a) == 2:
        if isinstance(b, MatmulPacked):
            packed = <MatmulPacked>b
            packed.check()
            return product(a, None, packed, packed.N, bias, function)
        if PyArray_NDIM(<ndarray?>b) == 2:
            return product(a, <ndarray>b, None, PyArray_DIM(<ndarray>b, 1), bias, function)
    return None


def matmul_batch(ndarray a not None, ndarray b not None, ndarray bias, str function):
    """f(a b + bias) for a (E, M, K) and b (E, K, N). Any strides."""
    return product(a, b, None, PyArray_DIM(b, 2), bias, function)


cdef ndarray product(ndarray a, ndarray b, MatmulPacked packed, npy_intp N, ndarray bias, str function):
    cdef int batched = PyArray_NDIM(a) - 2, threads = fsq_threads_get()
    cdef fsq_function f = FSQ_IDENTITY if function is IDENTITY else FUNCTIONS[function]
    cdef npy_intp dims[3]
    cdef npy_intp E = 1, M = PyArray_DIM(a, batched), K = PyArray_DIM(a, batched + 1), a_batch = 0, b_batch = 0, b_row = 0, b_col = 0
    cdef ndarray c
    cdef size_t bytes
    cdef void *panels = NULL if packed is None else packed.memory
    cdef void *work
    cdef bint single = is_single(a)
    dims[0], dims[batched], dims[batched + 1] = PyArray_DIM(a, 0), M, N
    c = empty_cache(batched + 2, dims, PyArray_TYPE(a))  # aligned where it is large: stores that straddle two lines took 10 %
    if PyArray_SIZE(c) == 0:
        return c
    if <double>M * <double>K > 2.0**59 or <double>K * <double>N > 2.0**59:
        raise ValueError(f"matmul: expected operands of fewer than 2**59 elements, got ({M}, {K}) and ({K}, {N})")
    a, bias = strided(a), dense_or_none(bias)
    if packed is None:
        b = strided(b)
        b_row, b_col = stride(b, batched), stride(b, batched + 1)
    if batched:
        E, a_batch, b_batch = dims[0], stride(a, 0), stride(b, 0)
    bytes = matmul_work_c(single, M, N, K, packed is not None, threads)
    work = scratch_take(bytes)
    with nogil:
        matmul_c(single, PyArray_DATA(c), PyArray_DATA(a), pointer(b), panels, pointer(bias), E, M, N, K, M * N, N,
                 a_batch, stride(a, batched), stride(a, batched + 1), b_batch, b_row, b_col, 0, f, threads, work)
        scratch_give(work, bytes)
    return c


def bias_backward(ndarray dy not None):
    """The sum over the rows of dy (M, N)."""
    cdef ndarray a = dense(dy), db = empty(PyArray_TYPE(dy), (PyArray_DIM(dy, 1),))
    cdef int threads = fsq_threads_get()
    with nogil:
        bias_backward_c(is_single(a), PyArray_DATA(db), PyArray_DATA(a), PyArray_DIM(a, 0), PyArray_DIM(a, 1), threads)
    return db


# ---------------------------------------------------------------- lstm

cdef class LSTMPacked(Panels):
    """An LSTM's weights in panels, and the arrays that they came from, which BPTT reads."""

    cdef readonly ndarray w_ih, w_hh
    cdef readonly npy_intp input_size, hidden_size
    cdef uint64_t fingerprint[2]


cdef inline size_t bytes_of(ndarray a) noexcept nogil:
    return 0 if a is None else PyArray_SIZE(a) * (4 if is_single(a) else 8)


def lstm_pack(ndarray w_ih not None, ndarray w_hh not None, ndarray b_ih, ndarray b_hh, LSTMPacked packed=None):
    """w_ih (4H, I), w_hh (4H, H), b_ih and b_hh (4H,) or None in panels: `packed` itself where it holds these very numbers."""
    cdef int threads = fsq_threads_get(), type = PyArray_TYPE(w_ih)
    cdef npy_intp I = PyArray_DIM(w_ih, 1), H = PyArray_DIM(w_hh, 1)
    cdef uint64_t[2] state = [0, 0]
    w_ih, w_hh, b_ih, b_hh = dense(w_ih), dense(w_hh), dense_or_none(b_ih), dense_or_none(b_hh)
    with nogil:
        fsq_fingerprint(state, PyArray_DATA(w_ih), bytes_of(w_ih), threads)
        fsq_fingerprint(state, PyArray_DATA(w_hh), bytes_of(w_hh), threads)
        fsq_fingerprint(state, pointer(b_ih), bytes_of(b_ih), threads)
        fsq_fingerprint(state, pointer(b_hh), bytes_of(b_hh), threads)
    if (packed is None or packed.type != type or packed.input_size != I or packed.hidden_size != H or packed.isa != fsq_isa_name()
            or packed.fingerprint[0] != state[0] or packed.fingerprint[1] != state[1]):
        packed = LSTMPacked.__new__(LSTMPacked)
        packed.input_size, packed.hidden_size = I, H
        packed.fingerprint[0], packed.fingerprint[1] = state[0], state[1]
        packed.reserve(type, lstm_packed_size_c(type == NPY_FLOAT, I, H))
        with nogil:
            lstm_pack_c(type == NPY_FLOAT, packed.memory, PyArray_DATA(w_ih), PyArray_DATA(w_hh), pointer(b_ih), pointer(b_hh), I, H, threads)
    packed.w_ih, packed.w_hh = w_ih, w_hh
    return packed


cdef class LSTMCache:
    """What lstm_backward needs of a forward call."""

    cdef readonly ndarray gates, cells, y, x, h_0, c_0, w_ih, w_hh


def lstm_forward(ndarray x not None, ndarray h_0, ndarray c_0, LSTMPacked packed not None, bint training):
    """x (T, B, I), h_0 and c_0 (B, H) or None -> y (T, B, H), h_n, c_n (B, H), LSTMCache or None."""
    cdef int threads = fsq_threads_get(), type = packed.type
    cdef bint single = type == NPY_FLOAT
    cdef npy_intp T = PyArray_DIM(x, 0), B = PyArray_DIM(x, 1), I = packed.input_size, H = packed.hidden_size
    cdef npy_intp dims[4]
    cdef ndarray y, h_n, c_n
    cdef LSTMCache cache = None
    cdef void *gates = NULL
    cdef void *cells = NULL
    cdef size_t bytes = lstm_forward_work_c(single, T, B, I, H, threads)
    cdef void *work
    packed.check()
    x, h_0, c_0 = dense(x), dense_or_none(h_0), dense_or_none(c_0)
    dims[0], dims[1], dims[2], dims[3] = T, B, H, 0
    y = PyArray_EMPTY(3, dims, type, 0)
    h_n, c_n = PyArray_EMPTY(2, dims + 1, type, 0), PyArray_EMPTY(2, dims + 1, type, 0)
    if training:
        cache = LSTMCache.__new__(LSTMCache)
        cache.cells = empty_cache(3, dims, type)
        dims[2], dims[3] = 4, H
        cache.gates = empty_cache(4, dims, type)
        cache.y, cache.x, cache.h_0, cache.c_0, cache.w_ih, cache.w_hh = y, x, h_0, c_0, packed.w_ih, packed.w_hh
        gates, cells = PyArray_DATA(cache.gates), PyArray_DATA(cache.cells)
    work = scratch_take(bytes)
    with nogil:
        lstm_forward_c(single, PyArray_DATA(y), PyArray_DATA(h_n), PyArray_DATA(c_n), gates, cells, PyArray_DATA(x),
                       pointer(h_0), pointer(c_0), packed.memory, T, B, I, H, threads, work)
        scratch_give(work, bytes)
    return y, h_n, c_n, cache


def lstm_backward(LSTMCache cache not None, ndarray dy, ndarray dh_n, ndarray dc_n, bint need_dx, bint need_weights):
    """dy (T, B, H), dh_n and dc_n (B, H), each or None = 0 -> dx, dh_0, dc_0, dw_ih, dw_hh, db; None for what is not needed."""
    cdef int threads = fsq_threads_get(), type = PyArray_TYPE(cache.x)
    cdef bint single = type == NPY_FLOAT
    cdef npy_intp T = PyArray_DIM(cache.x, 0), B = PyArray_DIM(cache.x, 1), I = PyArray_DIM(cache.x, 2), H = PyArray_DIM(cache.y, 2)
    cdef ndarray dx = None, dw_ih = None, dw_hh = None, db = None
    cdef ndarray dh_0 = empty(type, (B, H)), dc_0 = empty(type, (B, H))
    cdef size_t bytes = lstm_backward_work_c(single, T, B, I, H, threads)
    cdef void *work
    dy, dh_n, dc_n = dense_or_none(dy), dense_or_none(dh_n), dense_or_none(dc_n)
    if need_dx:
        dx = empty_like(cache.x)
    if need_weights:
        dw_ih, dw_hh, db = empty_like(cache.w_ih), empty_like(cache.w_hh), empty(type, (4 * H,))
    work = scratch_take(bytes)
    with nogil:
        lstm_backward_c(single, pointer(dx), PyArray_DATA(dh_0), PyArray_DATA(dc_0), pointer(dw_ih), pointer(dw_hh), pointer(db),
                        PyArray_DATA(cache.gates), PyArray_DATA(cache.cells), PyArray_DATA(cache.y), pointer(dy), pointer(dh_n), pointer(dc_n),
                        PyArray_DATA(cache.x), pointer(cache.h_0), pointer(cache.c_0), PyArray_DATA(cache.w_ih), PyArray_DATA(cache.w_hh),
                        T, B, I, H, threads, work)
        scratch_give(work, bytes)
    return dx, dh_0, dc_0, dw_ih, dw_hh, db


cdef class LSTMStream:
    """An LSTM one step at a time: a snapshot of the weights and the state (h, c), each (B, H).

    `source`, where set, is called by `refresh` for the packed weights of now.
    """

    cdef LSTMPacked packed
    cdef ndarray h, c
    cdef size_t bytes
    cdef int threads
    cdef readonly npy_intp batch_size
    cdef public object source

    def __init__(self, LSTMPacked packed not None, npy_intp batch_size):
        self.packed, self.batch_size = packed, batch_size
        self.h, self.c = np.zeros((batch_size, packed.hidden_size), packed.dtype), np.zeros((batch_size, packed.hidden_size), packed.dtype)

    @property
    def input_size(self):
        return self.packed.input_size

    @property
    def hidden_size(self):
        return self.packed.hidden_size

    @property
    def dtype(self):
        return self.packed.dtype

    @property
    def weights(self):
        """The LSTMPacked in use."""
        return self.packed

    def step(self, x, out=None):
        """h of the next step, (B, H), for x (B, I): a fresh array, or `out`, and then nothing is allocated."""
        cdef LSTMPacked packed = self.packed
        cdef npy_intp B = self.batch_size, I = packed.input_size, H = packed.hidden_size
        cdef int threads = fsq_threads_get(), type = packed.type
        cdef bint single = type == NPY_FLOAT
        cdef ndarray a, y
        cdef void *work
        packed.check()
        a = <ndarray>x if is_matrix(x, type, B, I) and PyArray_ISCARRAY_RO(<ndarray>x) else self._converted("x", x, I)
        if out is None:
            y = PyArray_EMPTY(2, PyArray_DIMS(self.h), type, 0)
        else:
            y = <ndarray>out if is_matrix(out, type, B, H) and PyArray_ISCARRAY(<ndarray>out) else self._refuse_out(out)
        if threads != self.threads:
            self.threads, self.bytes = threads, lstm_step_work_c(single, B, I, H, threads)
        work = scratch_take(self.bytes)
        with nogil:
            lstm_step_c(single, PyArray_DATA(self.h), PyArray_DATA(self.c), PyArray_DATA(a), packed.memory, B, I, H, threads, work)
            memcpy(PyArray_DATA(y), PyArray_DATA(self.h), B * H * (4 if single else 8))
            scratch_give(work, self.bytes)
        return y

    @property
    def state(self):
        """(h, c), each (B, H): copies. May be set to arrays of that shape, or of a layer's, (1, B, H)."""
        return self.h.copy(), self.c.copy()

    @state.setter
    def state(self, pair):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"state: expected (h, c), got {type(pair).__name__}")
        h, c = (self._converted(f"state: {name}", value[0] if np.ndim(value) == 3 and len(value) == 1 else value, self.packed.hidden_size)
                for name, value in zip("hc", pair))
        self.h[...], self.c[...] = h, c

    def reset(self, rows=None):
        """The state becomes zero: of all rows, or of those that `rows` (an index, a slice, a sequence or a mask) picks."""
        rows = slice(None) if rows is None else list(rows) if isinstance(rows, tuple) else rows
        self.h[rows], self.c[rows] = 0, 0

    def load(self, LSTMPacked packed not None):
        """Other weights of the same sizes and dtype; the state stays."""
        if packed.input_size != self.packed.input_size or packed.hidden_size != self.packed.hidden_size or packed.type != self.packed.type:
            raise ValueError(f"packed: expected {self.dtype} weights for input_size {self.input_size} and hidden_size {self.hidden_size}, "
                             f"got {packed.dtype}, {packed.input_size} and {packed.hidden_size}")
        self.packed, self.threads = packed, 0

    def refresh(self):
        """Take the weights of the layer that this stream came from again; the state stays."""
        if self.source is None:
            raise RuntimeError("refresh: this stream has no layer to take weights from; make one with layer.stream()")
        self.load(self.source())

    cdef ndarray _converted(self, str name, value, npy_intp width):
        """`value` as a dense array (B, width) of this stream's dtype, or an error that says what is wrong with it."""
        array = np.asarray(value)
        if array.dtype.kind not in "iub" and array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: expected float32, float64, integers or bools (this stream computes in {self.dtype}), got {array.dtype}")
        if array.shape != (self.batch_size, width):
            raise ValueError(f"{name}: expected shape ({self.batch_size}, {width}), got {array.shape}")
        return dense(array.astype(self.dtype, copy=False))

    cdef ndarray _refuse_out(self, out):
        expected = f"a writable {self.dtype} array ({self.batch_size}, {self.packed.hidden_size}) in C order"
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected {expected}, got {type(out).__name__}")
        raise ValueError(f"out: expected {expected}, got {out.dtype} {out.shape} with strides {out.strides}")


cdef inline bint is_matrix(object a, int type, npy_intp rows, npy_intp columns) noexcept:
    return (isinstance(a, ndarray) and PyArray_TYPE(<ndarray>a) == type and PyArray_NDIM(<ndarray>a) == 2
            and PyArray_DIM(<ndarray>a, 0) == rows and PyArray_DIM(<ndarray>a, 1) == columns)


# ---------------------------------------------------------------- pointwise, softmax, cross_entropy

def pointwise_forward(ndarray x not None, fsq_function function):
    """y = f(x)."""
    cdef ndarray a = dense(x), y = empty_like(a)
    cdef int threads = fsq_threads_get()
    with nogil:
        pointwise_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), PyArray_SIZE(a), function, threads)
    return y


def pointwise_backward(ndarray saved not None, ndarray dy not None, fsq_function function):
    """dx = dy f'(x) from `saved` = y, but for log x."""
    cdef ndarray s = dense(saved), g = dense(dy), dx = empty_like(s)
    cdef int threads = fsq_threads_get()
    with nogil:
        pointwise_backward_c(is_single(s), PyArray_DATA(dx), PyArray_DATA(s), PyArray_DATA(g), PyArray_SIZE(s), function, threads)
    return dx


def softmax_forward(ndarray x not None):
    """Softmax over the last axis."""
    cdef ndarray a = dense(x), y = empty_like(a)
    cdef int threads = fsq_threads_get()
    cdef npy_intp M = rows(a), N = last_axis(a)
    with nogil:
        softmax_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), M, N, threads)
    return y


def softmax_backward(ndarray y not None, ndarray dy not None):
    """dx = y (dy - sum(y dy)) over the last axis."""
    cdef ndarray a = dense(y), g = dense(dy), dx = empty_like(a)
    cdef int threads = fsq_threads_get()
    cdef npy_intp M = rows(a), N = last_axis(a)
    with nogil:
        softmax_backward_c(is_single(a), PyArray_DATA(dx), PyArray_DATA(a), PyArray_DATA(g), M, N, threads)
    return dx


def cross_entropy_forward(ndarray logits not None, ndarray targets not None, int64_t ignore_index, double smoothing):
    """logits (N, V), targets (N,) int64 -> losses (N,), lse (N,)."""
    cdef ndarray a = dense(logits), t = dense(targets)
    cdef npy_intp N = PyArray_DIM(a, 0), V = PyArray_DIM(a, 1)
    cdef ndarray losses = empty(PyArray_TYPE(a), (N,)), lse = empty(PyArray_TYPE(a), (N,))
    cdef int threads = fsq_threads_get()
    with nogil:
        cross_entropy_forward_c(is_single(a), PyArray_DATA(losses), PyArray_DATA(lse), PyArray_DATA(a), <const int64_t *>PyArray_DATA(t), N, V,
                                ignore_index, smoothing, threads)
    return losses, lse


def cross_entropy_backward(ndarray lse not None, ndarray logits not None, ndarray targets not None, ndarray dlosses not None,
                           int64_t ignore_index, double smoothing):
    """dlogits (N, V); dlosses (N,), or one number for every row."""
    cdef ndarray s = dense(lse), a = dense(logits), t = dense(targets), g = dense(dlosses), dlogits = empty_like(a)
    cdef npy_intp N = PyArray_DIM(a, 0), V = PyArray_DIM(a, 1)
    cdef int threads = fsq_threads_get()
    with nogil:
        cross_entropy_backward_c(is_single(a), PyArray_DATA(dlogits), PyArray_DATA(s), PyArray_DATA(a), <const int64_t *>PyArray_DATA(t),
                                 PyArray_DATA(g), PyArray_SIZE(g) != 1, N, V, ignore_index, smoothing, threads)
    return dlogits


# ---------------------------------------------------------------- embedding, dropout

def ids_find_outside(ndarray ids not None, int64_t limit):
    """The flat position of the first id outside [0, limit), or -1."""
    cdef ndarray a = dense(ids)
    cdef npy_intp position
    with nogil:
        position = fsq_ids_find_outside(<const int64_t *>PyArray_DATA(a), PyArray_SIZE(a), limit)
    return position


def embedding_forward(ndarray ids not None, ndarray weight not None):
    """ids (n,) int64, weight (V, D) -> (n, D)."""
    cdef ndarray a = dense(ids), w = dense(weight)
    cdef npy_intp n = PyArray_SIZE(a), V = PyArray_DIM(w, 0), D = PyArray_DIM(w, 1)
    cdef ndarray y = empty(PyArray_TYPE(w), (n, D))
    cdef int threads = fsq_threads_get()
    with nogil:
        embedding_forward_c(is_single(w), PyArray_DATA(y), <const int64_t *>PyArray_DATA(a), PyArray_DATA(w), n, V, D, threads)
    return y


def embedding_backward(ndarray dy not None, ndarray ids not None, npy_intp V, int64_t padding_idx):
    """dy (n, D) at ids (n,) int64 -> dweight (V, D)."""
    cdef ndarray g = dense(dy), a = dense(ids)
    cdef npy_intp n = PyArray_SIZE(a), D = last_axis(g)
    cdef ndarray dweight = empty(PyArray_TYPE(g), (V, D))
    cdef int threads = fsq_threads_get()
    with nogil:
        embedding_backward_c(is_single(g), PyArray_DATA(dweight), PyArray_DATA(g), <const int64_t *>PyArray_DATA(a), n, V, D, padding_idx, threads)
    return dweight


def dropout(ndarray x not None, double p, uint64_t seed, uint32_t layer, uint32_t call):
    """x m / (1 - p), m drawn by Philox."""
    cdef ndarray a = dense(x), y = empty_like(a)
    cdef int threads = fsq_threads_get()
    with nogil:
        dropout_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), PyArray_SIZE(a), p, seed, layer, call, threads)
    return y


# ---------------------------------------------------------------- optim: in place, on writable arrays in C order

def sum_squares(ndarray x not None):
    """The sum of x_i^2, in double."""
    cdef ndarray a = dense(x)
    cdef int threads = fsq_threads_get()
    cdef double total
    with nogil:
        total = sum_squares_c(is_single(a), PyArray_DATA(a), PyArray_SIZE(a), threads)
    return total


def scale(ndarray x not None, double factor):
    """x *= factor."""
    cdef void *a = writable(x)
    cdef int threads = fsq_threads_get()
    with nogil:
        scale_c(is_single(x), a, PyArray_SIZE(x), factor, threads)


def sgd(ndarray w not None, ndarray velocity, ndarray grad not None, double lr, double momentum, bint nesterov, bint first, double weight_decay):
    """One step of stochastic gradient descent; velocity None without momentum."""
    cdef ndarray g = dense(grad)
    cdef void *a = writable(w)
    cdef void *v = writable(velocity)
    cdef int threads = fsq_threads_get()
    with nogil:
        sgd_c(is_single(w), a, v, PyArray_DATA(g), PyArray_SIZE(w), lr, momentum, nesterov, first, weight_decay, threads)


def adam(ndarray w not None, ndarray m not None, ndarray v not None, ndarray grad not None, double lr, double beta1, double beta2, double eps,
         double weight_decay, bint decoupled, int64_t step):
    """One step of Adam or, decoupled, of AdamW."""
    cdef ndarray g = dense(grad)
    cdef void *a = writable(w)
    cdef void *first = writable(m)
    cdef void *second = writable(v)
    cdef int threads = fsq_threads_get()
    with nogil:
        adam_c(is_single(w), a, first, second, PyArray_DATA(g), PyArray_SIZE(w), lr, beta1, beta2, eps, weight_decay, decoupled, step, threads)
