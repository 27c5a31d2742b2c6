# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, freethreading_compatible=False
"""The binding: takes validated arrays, drops the GIL and calls C. No arithmetic lives here.

What does live here, because every call needs it: results and scratch. Results are new arrays, of which large ones get the memory of
earlier ones that are gone. Scratch comes from an arena that each thread keeps. Fresh megabytes per call would cost more in page faults
than many an op takes.

Arrays that C needs dense are copied where they are not; `matmul` takes any strides. Every function reads the number of threads
once and gives it to the op and to the question how much scratch the op needs, which must agree.
"""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from numpy cimport (
    NPY_ARRAY_CARRAY_RO, NPY_BOOL, NPY_DOUBLE, NPY_FLOAT, NPY_INT64, PyArray_CheckExact, PyArray_DATA, PyArray_DIM, PyArray_DIMS, PyArray_EMPTY, PyArray_FROM_OTF, PyArray_ISBEHAVED_RO,
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
FUNCTIONS = {"identity": FSQ_IDENTITY, "exp": FSQ_EXP, "log": FSQ_LOG, "tanh": FSQ_TANH, "sigmoid": FSQ_SIGMOID, "relu": FSQ_RELU,
             "erf": FSQ_ERF, "gelu": FSQ_GELU, "gelu_tanh": FSQ_GELU_TANH, "silu": FSQ_SILU, "softplus": FSQ_SOFTPLUS, "elu": FSQ_ELU,
             "leaky_relu": FSQ_LEAKY_RELU}
cdef str IDENTITY = "identity"

# ---------------------------------------------------------------- memory

cdef enum:
    LINE = 64               # bytes of a cache line, and of the widest register
    HUGE_PAGE = 2 << 20     # from this size on: 2 to 3 % faster where 6 to 32 MB of weights are streamed (Cascade Lake)
    ARENA_KEPT = 64 << 20   # the most scratch that a thread keeps between calls
    KEEP_LEAST = 1 << 18    # the memory of results from this size on is kept for later ones: malloc gives it back and forth
    KEEP_MOST = 64          # how many are kept,
    KEEP_BYTES = 256 << 20  # and how many bytes at most

cdef pthread_key_t arena_key
if pthread_key_create(&arena_key, free) != 0:
    raise MemoryError("no thread-local storage left")


cdef inline size_t rounded(size_t bytes) noexcept:
    """What `allocate` takes for so many bytes."""
    cdef size_t unit = LINE if bytes < HUGE_PAGE else HUGE_PAGE
    return (bytes + unit) & ~(unit - 1)


cdef void *allocate(size_t bytes) except NULL:
    cdef size_t unit = LINE if bytes < HUGE_PAGE else HUGE_PAGE
    cdef void *memory = NULL
    if bytes < <size_t>1 << 62:
        bytes = rounded(bytes)
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

cdef Memory kept[KEEP_MOST]
cdef size_t kept_bytes = 0
cdef int kept_next = 0      # where the next one goes: around, so that the oldest makes room


cdef class Kept:
    """The memory of a large array; when the array is gone it is kept for the next one."""

    cdef Memory memory

    def __dealloc__(self):
        global kept_bytes, kept_next
        if self.memory.bytes > KEEP_BYTES:
            free(self.memory.start)
            return
        while kept[kept_next].start != NULL or kept_bytes + self.memory.bytes > KEEP_BYTES:
            kept_bytes -= kept[kept_next].bytes
            free(kept[kept_next].start)
            kept[kept_next] = Memory(NULL, 0)
            if kept_bytes + self.memory.bytes > KEEP_BYTES:
                kept_next = (kept_next + 1) % KEEP_MOST
        kept[kept_next] = self.memory
        kept_bytes += self.memory.bytes
        kept_next = (kept_next + 1) % KEEP_MOST


cdef ndarray new_array(int axes, npy_intp *dims, int type):
    """An array for a result.

    A fresh large one would cost its page faults, 9 % of a training step of a transformer's layer (B16 T128 E256): glibc hands the top of its heap
    back to the system when backward frees what forward kept.
    """
    global kept_bytes
    cdef size_t bytes = 4 if type == NPY_FLOAT else 8
    cdef double size = bytes
    cdef int i
    cdef Kept owner
    cdef ndarray a
    for i in range(axes):
        size *= dims[i]
        bytes *= dims[i]
    if size < KEEP_LEAST or size > 2.0**62:
        return PyArray_EMPTY(axes, dims, type, 0)
    owner = Kept.__new__(Kept)
    for i in range(KEEP_MOST):
        if bytes <= kept[i].bytes <= rounded(bytes + bytes // 4):
            owner.memory = kept[i]
            kept_bytes -= kept[i].bytes
            kept[i] = Memory(NULL, 0)
            break
    else:
        owner.memory = Memory(allocate(bytes), rounded(bytes))
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
    return new_array(PyArray_NDIM(a), PyArray_DIMS(a), PyArray_TYPE(a))


cdef ndarray empty(int type, tuple shape):
    cdef npy_intp dims[4]
    cdef int i
    for i in range(len(shape)):
        dims[i] = shape[i]
    return new_array(<int>len(shape), dims, type)


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


def matmul_plain(a, b):
    """a b for two matrices of one float type that fit, b perhaps packed: the shortest way, for what costs little else. None where
    there is anything more to look at."""
    cdef MatmulPacked packed
    cdef ndarray x
    cdef int type_
    if type(a) is not ndarray or PyArray_NDIM(<ndarray>a) != 2 or not PyArray_ISBEHAVED_RO(<ndarray>a):
        return None
    x = <ndarray>a
    type_ = PyArray_TYPE(x)
    if type(b) is ndarray:
        if (PyArray_NDIM(<ndarray>b) == 2 and PyArray_ISBEHAVED_RO(<ndarray>b) and PyArray_TYPE(<ndarray>b) == type_
                and (type_ == NPY_FLOAT or type_ == NPY_DOUBLE)
                and PyArray_DIM(<ndarray>b, 0) == PyArray_DIM(x, 1) and <double>PyArray_DIM(x, 0) * <double>PyArray_DIM(<ndarray>b, 1) < 2.0**59):
            return product(x, <ndarray>b, None, PyArray_DIM(<ndarray>b, 1), None, IDENTITY)
    elif type(b) is MatmulPacked:
        packed = <MatmulPacked>b
        if packed.type == type_ and packed.K == PyArray_DIM(x, 1) and <double>PyArray_DIM(x, 0) * <double>packed.N < 2.0**59:
            packed.check()
            return product(x, None, packed, packed.N, None, IDENTITY)
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
    c = new_array(batched + 2, dims, PyArray_TYPE(a))  # aligned where it is large: stores that straddle two lines took 10 %
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


# ---------------------------------------------------------------- recurrent layers

# The names of csrc/fastseq.h's fsq_cell.
CELLS = {"rnn_tanh": FSQ_RNN_TANH, "rnn_relu": FSQ_RNN_RELU, "lstm": FSQ_LSTM, "gru": FSQ_GRU, "gru_before": FSQ_GRU_BEFORE,
         "mut1": FSQ_MUT1, "mut2": FSQ_MUT2, "mut3": FSQ_MUT3}

cdef enum:
    WEIGHTS = 12                                # arrays of one direction, in one order in Python and in C:
    B_IH = 2                                    # w_ih, w_hh, b_ih, b_hh, ...
    B_HH = 3

cdef extern from *:
    """
    #include <stddef.h>
    _Static_assert(sizeof(fsq_recurrent_weights) == 12 * sizeof(void *), "WEIGHTS");
    _Static_assert(sizeof(fsq_recurrent_gradients) - offsetof(fsq_recurrent_gradients, dw_ih) == 12 * sizeof(void *), "WEIGHTS");
    """


cdef inline size_t bytes_of(ndarray a) noexcept nogil:
    return 0 if a is None else PyArray_SIZE(a) * (4 if is_single(a) else 8)


cdef inline void *row_of(ndarray a, npy_intp i) noexcept nogil:
    """a[i] of a dense array."""
    return NULL if a is None else <char *>PyArray_DATA(a) + i * PyArray_STRIDE(a, 0)


cdef inline void *after(const void *start, npy_intp bytes) noexcept nogil:
    return NULL if start == NULL else <char *>start + bytes


cdef void zero_past_end(ndarray a, const int64_t *lengths, npy_intp T, npy_intp B) noexcept:
    """a (..., T, B, n): the steps at or after a row's length become zeros."""
    cdef size_t width = last_axis(a) * (4 if is_single(a) else 8)
    cdef npy_intp i
    for i in range(PyArray_SIZE(a) // last_axis(a) if width else 0):
        if i // B % T >= lengths[i % B]:
            memset(<char *>PyArray_DATA(a) + i * width, 0, width)


cdef object dense_weights(object weights, fsq_recurrent_weights *pointers, size_t *bytes):
    """One direction's weights, itself where all are dense; `pointers` and `bytes` describe them."""
    cdef const void **each = &pointers.w_ih
    cdef list arrays = list(weights)            # a named tuple is slow to index
    cdef bint same = True
    cdef ndarray a
    cdef int i
    for i in range(WEIGHTS):
        a = dense_or_none(arrays[i])
        each[i], bytes[i] = pointer(a), bytes_of(a)
        if a is not arrays[i]:
            arrays[i], same = a, False
    return weights if same else type(weights)(*arrays)


cdef class RecurrentPacked(Panels):
    """A recurrent layer's weights in panels, direction after direction, and the arrays that they came from, which forward and BPTT read too."""

    cdef readonly str cell
    cdef readonly tuple directions              # backends.recurrent.Weights
    cdef fsq_recurrent_call sizes
    cdef fsq_recurrent_weights pointers[2]
    cdef npy_intp panel_bytes                   # of one direction
    cdef uint64_t fingerprint[2]

    @property
    def input_size(self):
        return self.sizes.I

    @property
    def hidden_size(self):
        return self.sizes.H

    @property
    def output_size(self):
        """The width of h."""
        return self.sizes.P

    cdef bint fits(self, int type, const fsq_recurrent_call *sizes, int D) noexcept:
        """Whether these panels hold weights of these sizes, for the instruction set in use."""
        return (self.type == type and self.isa == fsq_isa_name() and len(self.directions) == D and self.sizes.cell == sizes.cell
                and self.sizes.layer_norm == sizes.layer_norm and self.sizes.I == sizes.I and self.sizes.H == sizes.H and self.sizes.P == sizes.P)


def recurrent_pack(str cell not None, tuple directions not None, RecurrentPacked packed=None):
    """One layer's weights, of 1 or 2 directions, in panels: `packed` itself where it holds these very numbers."""
    cdef int threads = fsq_threads_get(), D = <int>len(directions), d, i
    cdef fsq_recurrent_call sizes
    cdef fsq_recurrent_weights pointers[2]
    cdef size_t bytes[2 * WEIGHTS]
    cdef uint64_t[2] state = [0, 0]
    cdef const void **each
    cdef ndarray w_ih, w_hh, w_hr
    cdef int type
    cdef bint single
    if not 1 <= D <= 2:
        raise ValueError(f"directions: expected 1 or 2, got {D}")
    w_ih, w_hh, w_hr = directions[0].w_ih, directions[0].w_hh, directions[0].w_hr
    type = PyArray_TYPE(w_ih)
    single = type == NPY_FLOAT
    memset(&sizes, 0, sizeof(sizes))
    sizes.cell, sizes.layer_norm = CELLS[cell], directions[0].ln_ih_weight is not None
    sizes.I, sizes.P = PyArray_DIM(w_ih, 1), PyArray_DIM(w_hh, 1)
    sizes.H = sizes.P if w_hr is None else PyArray_DIM(w_hr, 1)
    directions = tuple([dense_weights(directions[d], &pointers[d], &bytes[d * WEIGHTS]) for d in range(D)])
    with nogil:
        for d in range(D):
            each = &pointers[d].w_ih
            for i in range(WEIGHTS):
                fsq_fingerprint(state, each[i], bytes[d * WEIGHTS + i], threads)
    if packed is None or not packed.fits(type, &sizes, D) or packed.fingerprint[0] != state[0] or packed.fingerprint[1] != state[1]:
        packed = RecurrentPacked.__new__(RecurrentPacked)
        packed.cell, packed.sizes = cell, sizes
        packed.fingerprint[0], packed.fingerprint[1] = state[0], state[1]
        packed.panel_bytes = (recurrent_packed_size_c(single, &sizes) * (4 if single else 8) + LINE - 1) // LINE * LINE
        packed.reserve(type, D * packed.panel_bytes // (4 if single else 8))
        with nogil:
            for d in range(D):
                recurrent_pack_c(single, after(packed.memory, d * packed.panel_bytes), &sizes, &pointers[d], threads)
    packed.directions = directions
    for d in range(D):
        packed.pointers[d] = pointers[d]
    return packed


cdef class RecurrentCache:
    """A forward call: its arguments as C takes them, and what recurrent_backward needs of its results."""

    cdef fsq_recurrent_call call
    cdef fsq_recurrent_direction directions[2]
    cdef int D
    cdef RecurrentPacked packed
    cdef tuple weights                          # backends.recurrent.Weights of then: `packed` may get other arrays of the same numbers
    cdef ndarray x, y, h_0, c_0, lengths, reset
    cdef readonly ndarray cells, saved          # (D, T, B, H) and (D, T, B, what C wants)
    cdef npy_intp every, segments               # with checkpoints: steps of a segment, and how many of them
    cdef ndarray h, c                           # with checkpoints: the states before each segment but the first, (D, segments - 1, B, ...)

    cdef int prepare(self, RecurrentPacked packed, ndarray x, ndarray h_0, ndarray c_0, ndarray lengths, ndarray reset, object noise) except -1:
        """Everything but the places of the results."""
        cdef int d
        self.packed, self.weights, self.D = packed, packed.directions, <int>len(packed.directions)
        self.x, self.h_0, self.c_0, self.lengths, self.reset = dense(x), dense_or_none(h_0), dense_or_none(c_0), dense_or_none(lengths), dense_or_none(reset)
        self.call = packed.sizes
        self.call.T, self.call.B = PyArray_DIM(x, 0), PyArray_DIM(x, 1)
        self.call.end = self.call.T
        self.call.lengths, self.call.reset = <const int64_t *>pointer(self.lengths), <const unsigned char *>pointer(self.reset)
        for d in range(self.D):
            self.directions[d].reverse, self.directions[d].weights = d, packed.pointers[d]
            self.directions[d].packed = after(packed.memory, d * packed.panel_bytes)
            self.directions[d].x = PyArray_DATA(self.x)
            self.directions[d].h_0, self.directions[d].c_0 = row_of(self.h_0, d), row_of(self.c_0, d)
            self.directions[d].y_row = self.D * self.call.P
        self.call.recurrent_dropout, self.call.zoneout_h, self.call.zoneout_c, self.call.draw, seed, layer, number = noise
        if self.call.draw and (self.call.recurrent_dropout != 0 or self.call.zoneout_h != 0 or self.call.zoneout_c != 0):
            for d in range(self.D):
                self.directions[d].key_dropout = noise_key(seed, 0, layer + d, number)
                self.directions[d].key_zoneout_h = noise_key(seed, 1, layer + d, number)
                self.directions[d].key_zoneout_c = noise_key(seed, 2, layer + d, number)
        return 0

    cdef int place(self, ndarray y, ndarray h_n, ndarray c_n) noexcept:
        """The places of the results."""
        cdef int d
        self.y = y
        for d in range(self.D):
            self.directions[d].y = after(PyArray_DATA(y), d * self.call.P * PyArray_STRIDE(y, 2))
            self.directions[d].h_n, self.directions[d].c_n = row_of(h_n, d), row_of(c_n, d)
            self.directions[d].cells, self.directions[d].cache = row_of(self.cells, d), row_of(self.saved, d)
        return 0

    cdef void segment(self, int d, npy_intp s, fsq_recurrent_call *call, fsq_recurrent_direction *direction) noexcept:
        """The s-th segment in direction d: its steps, and where its part of x and of the states lies."""
        cdef npy_intp size = 4 if self.packed.type == NPY_FLOAT else 8
        cdef npy_intp rows = self.call.B * size * (self.segments - 1)
        call[0], direction[0] = self.call, self.directions[d]
        call.start = self.every * (self.segments - 1 - s if direction.reverse else s)
        call.end = min(call.T, call.start + self.every)
        direction.x = after(direction.x, call.start * call.B * call.I * size)
        if s > 0:
            direction.h_0 = after(pointer(self.h), d * rows * call.P + (s - 1) * call.B * call.P * size)
            direction.c_0 = after(pointer(self.c), d * rows * call.H + (s - 1) * call.B * call.H * size)


cdef uint64_t noise_key(uint64_t seed, uint32_t kind, uint32_t layer, uint32_t call) noexcept nogil:
    """Philox's key for the masks of one kind: 0 recurrent dropout, 1 and 2 zoneout of h and of c."""
    cdef uint32_t[4] counter = [kind, layer, call, 0x7265636E]
    cdef uint32_t out[4]
    fsq_philox(out, seed, counter)
    return out[0] | <uint64_t>out[1] << 32


cdef int forward_run(bint single, const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, int D, int threads) except -1:
    cdef size_t bytes = recurrent_forward_work_c(single, call, D, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        recurrent_forward_c(single, call, directions, D, threads, work)
        scratch_give(work, bytes)
    return 0


cdef int backward_run(bint single, const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, const fsq_recurrent_gradients *gradients,
                      int D, int threads) except -1:
    cdef size_t bytes = recurrent_backward_work_c(single, call, D, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        recurrent_backward_c(single, call, directions, gradients, D, threads, work)
        scratch_give(work, bytes)
    return 0


def recurrent_forward(ndarray x not None, ndarray h_0, ndarray c_0, RecurrentPacked packed not None, ndarray lengths, ndarray reset, noise,
                      bint training, bint states, npy_intp every):
    """x (T, B, I), h_0 (D, B, P), c_0 (D, B, H) or None -> y (T, B, D P), h_n, c_n, cells (D, T, B, H) where `states` asks, RecurrentCache in training.

    every: 0, or how many steps lie between checkpoints, which training then keeps instead of a cache.
    """
    cdef int threads = fsq_threads_get(), type = packed.type
    cdef bint single = type == NPY_FLOAT, lstm = packed.sizes.cell == FSQ_LSTM, checkpoints = training and every > 0
    cdef RecurrentCache run = RecurrentCache.__new__(RecurrentCache)
    cdef npy_intp dims[4]
    cdef ndarray y, h_n, c_n = None, cells = None
    packed.check()
    if training and lengths is not None:
        lengths = lengths.copy()                # backward trusts them
    run.prepare(packed, x, h_0, c_0, lengths, reset, noise)
    dims[0], dims[1], dims[2] = run.call.T, run.call.B, run.D * run.call.P
    y = new_array(3, dims, type)
    dims[0], dims[2] = run.D, run.call.P
    h_n = new_array(3, dims, type)
    if lstm:
        dims[2] = run.call.H
        c_n = new_array(3, dims, type)
    dims[1], dims[2], dims[3] = run.call.T, run.call.B, run.call.H
    if lstm and (states or training and not checkpoints):
        run.cells = new_array(4, dims, type)
    if training and not checkpoints:
        dims[3] = fsq_recurrent_cache_width(&run.call)
        run.saved = new_array(4, dims, type)
    run.place(y, h_n, c_n)
    if lengths is not None:
        zero_past_end(y, run.call.lengths, run.call.T, run.call.B)
        if states and lstm:
            zero_past_end(run.cells, run.call.lengths, run.call.T, run.call.B)
    if checkpoints:
        run.every, run.segments = every, max(1, (run.call.T + every - 1) // every)
        forward_in_segments(run, threads)
    else:
        forward_run(single, &run.call, run.directions, run.D, threads)
    cells = run.cells if states else None
    if checkpoints:
        run.y, run.cells = None, None           # backward computes them again
    return y, h_n, c_n, cells, run if training else None


cdef int forward_in_segments(RecurrentCache run, int threads) except -1:
    """Forward with a checkpoint at the beginning of each segment: the state that the one before it left."""
    cdef int type = run.packed.type, d
    cdef npy_intp s, size = 4 if type == NPY_FLOAT else 8
    cdef fsq_recurrent_call call, next_call
    cdef fsq_recurrent_direction direction, next_direction
    run.h = empty(type, (run.D, run.segments - 1, run.call.B, run.call.P))
    run.c = empty(type, (run.D, run.segments - 1, run.call.B, run.call.H)) if run.call.cell == FSQ_LSTM else None
    for d in range(run.D):
        for s in range(run.segments):
            run.segment(d, s, &call, &direction)
            direction.y = after(direction.y, call.start * call.B * direction.y_row * size)
            direction.cells = after(direction.cells, call.start * call.B * call.H * size)
            if s < run.segments - 1:
                run.segment(d, s + 1, &next_call, &next_direction)
                direction.h_n, direction.c_n = <void *>next_direction.h_0, <void *>next_direction.c_0
            forward_run(type == NPY_FLOAT, &call, &direction, 1, threads)
    return 0


def recurrent_backward(RecurrentCache cache not None, ndarray dy, ndarray dh_n, ndarray dc_n, ndarray dcells,
                       bint need_dx, bint need_weights, bint need_dstates):
    """Upstream gradients, each None = 0 -> a dict: dx, dh_0, dc_0, weights (one for each direction) and dstates; None for what is not needed."""
    cdef int threads = fsq_threads_get(), type = cache.packed.type, D = cache.D, d
    cdef npy_intp T = cache.call.T, B = cache.call.B, size = 4 if type == NPY_FLOAT else 8
    cdef fsq_recurrent_gradients g[2]
    cdef npy_intp[4] dims = [D, B, cache.call.P, 0]
    cdef ndarray dx = None, dx_reverse = None, dh_0, dc_0 = None, dstates = None
    cdef list weights = []
    cache.packed.check()
    memset(g, 0, sizeof(g))
    dy, dh_n, dc_n, dcells = dense_or_none(dy), dense_or_none(dh_n), dense_or_none(dc_n), dense_or_none(dcells)
    dh_0 = new_array(3, dims, type)
    if cache.call.cell == FSQ_LSTM:
        dims[2] = cache.call.H
        dc_0 = new_array(3, dims, type)
    if need_dx:
        dx, dx_reverse = empty_like(cache.x), empty_like(cache.x) if D == 2 else None
    if need_dstates:
        dims[1], dims[2], dims[3] = T, B, cache.call.P
        dstates = new_array(4, dims, type)
    for d in range(D):
        g[d].dy, g[d].dcells = after(pointer(dy), d * cache.call.P * size), row_of(dcells, d)
        g[d].dh_n, g[d].dc_n, g[d].dh_0, g[d].dc_0 = row_of(dh_n, d), row_of(dc_n, d), row_of(dh_0, d), row_of(dc_0, d)
        g[d].dx, g[d].dstates, g[d].weights = pointer(dx_reverse if d else dx), row_of(dstates, d), need_weights
        if need_weights:
            weights.append(new_gradients(list(cache.weights[d]), &g[d], cache.call.cell >= FSQ_MUT1))
    if cache.every:
        backward_in_segments(cache, g, threads)
    else:
        backward_run(type == NPY_FLOAT, &cache.call, cache.directions, g, D, threads)
    if cache.lengths is not None:
        for array in (dx, dx_reverse, dstates):
            if array is not None:
                zero_past_end(array, cache.call.lengths, T, B)
    if dx_reverse is not None:
        np.add(dx, dx_reverse, dx)
    return {"dx": dx, "dh_0": dh_0, "dc_0": dc_0, "dstates": dstates,
            "weights": tuple([wanted_gradients(cache.weights[d], weights[d]) if need_weights else None for d in range(D)])}


cdef list new_gradients(list weights, fsq_recurrent_gradients *g, bint mut):
    """Arrays for the gradients of one direction's weights, which `g` then points to; for both biases, there or not, but a MUT has one."""
    cdef void **each = &g.dw_ih
    cdef list arrays = [None] * WEIGHTS
    cdef ndarray w_ih = weights[0], a
    cdef int i
    for i in range(WEIGHTS):
        if weights[i] is not None:
            a = empty_like(weights[i])
        elif i == B_IH or i == B_HH and not mut:
            a = new_array(1, PyArray_DIMS(w_ih), PyArray_TYPE(w_ih))
        else:
            continue
        arrays[i], each[i] = a, PyArray_DATA(a)
    return arrays


cdef object wanted_gradients(object weights, list gradients):
    return type(weights)(*[None if weight is None else gradient for weight, gradient in zip(weights, gradients)])


cdef int backward_in_segments(RecurrentCache cache, fsq_recurrent_gradients *gradients, int threads) except -1:
    """Backward from checkpoints: the last segment first, each forwards again, now with a cache, and then backwards."""
    cdef int type = cache.packed.type, d
    cdef bint single = type == NPY_FLOAT
    cdef npy_intp s, first, size = 4 if single else 8, B = cache.call.B, H = cache.call.H, P = cache.call.P
    cdef npy_intp[3] dims = [min(cache.every, cache.call.T), B, 0]
    cdef fsq_recurrent_call call
    cdef fsq_recurrent_direction direction
    cdef fsq_recurrent_gradients g
    cdef ndarray y, saved, h_n = empty(type, (B, P)), cells = None, c_n = None
    dims[2] = cache.D * P                       # as far apart as the rows of dy
    y = new_array(3, dims, type)
    dims[2] = fsq_recurrent_cache_width(&cache.call)
    saved = new_array(3, dims, type)
    if cache.call.cell == FSQ_LSTM:
        dims[2] = H
        cells, c_n = new_array(3, dims, type), empty(type, (B, H))
    for d in range(cache.D):
        g = gradients[d]
        for s in range(cache.segments - 1, -1, -1):
            cache.segment(d, s, &call, &direction)
            direction.y, direction.h_n, direction.c_n = PyArray_DATA(y), PyArray_DATA(h_n), pointer(c_n)
            direction.cells, direction.cache = pointer(cells), PyArray_DATA(saved)
            forward_run(single, &call, &direction, 1, threads)
            first = call.start * B * size
            g.dy, g.dcells = after(gradients[d].dy, first * direction.y_row), after(gradients[d].dcells, first * H)
            g.dx, g.dstates = after(gradients[d].dx, first * call.I), after(gradients[d].dstates, first * P)
            backward_run(single, &call, &direction, &g, 1, threads)
            g.dh_n, g.dc_n, g.accumulate = g.dh_0, g.dc_0, True
    return 0


def recurrent_stack(ndarray x not None, ndarray h_0, ndarray c_0, tuple layers not None, ndarray lengths, ndarray reset, tuple zoneout not None):
    """Layers of one direction, each on the one before, nothing recorded: x (T, B, I), h_0 (L, B, P), c_0 (L, B, H) or None -> y (T, B, P), h_n, c_n."""
    cdef int threads = fsq_threads_get(), L = <int>len(layers), l
    cdef RecurrentPacked top = layers[L - 1], packed
    cdef int type = top.type
    cdef bint single = type == NPY_FLOAT
    cdef npy_intp[4] dims = [L, PyArray_DIM(x, 0), PyArray_DIM(x, 1), top.sizes.P]
    cdef bytearray calls_memory = bytearray(L * sizeof(fsq_recurrent_call)), directions_memory = bytearray(L * sizeof(fsq_recurrent_direction))
    cdef fsq_recurrent_call *calls = <fsq_recurrent_call *><char *>calls_memory
    cdef fsq_recurrent_direction *directions = <fsq_recurrent_direction *><char *>directions_memory
    cdef ndarray y = new_array(3, dims + 1, type), below, h_n, c_n = None
    cdef size_t bytes
    cdef void *work
    dims[0] = L - 1
    below = new_array(4, dims, type)          # y of all layers but the last
    h_n = empty(type, (L, dims[2], dims[3]))
    if top.sizes.cell == FSQ_LSTM:
        c_n = empty(type, (L, dims[2], top.sizes.H))
    x, h_0, c_0, lengths, reset = dense(x), dense_or_none(h_0), dense_or_none(c_0), dense_or_none(lengths), dense_or_none(reset)
    if lengths is not None:
        zero_past_end(y, <const int64_t *>PyArray_DATA(lengths), dims[1], dims[2])
    for l in range(L):
        packed = layers[l]
        packed.check()
        calls[l] = packed.sizes
        calls[l].T, calls[l].end, calls[l].B = dims[1], dims[1], dims[2]
        calls[l].lengths, calls[l].reset = <const int64_t *>pointer(lengths), <const unsigned char *>pointer(reset)
        calls[l].zoneout_h, calls[l].zoneout_c = zoneout
        directions[l].packed, directions[l].weights, directions[l].y_row = packed.memory, packed.pointers[0], packed.sizes.P
        directions[l].x = row_of(below, l - 1) if l else PyArray_DATA(x)
        directions[l].y = row_of(below, l) if l < L - 1 else PyArray_DATA(y)
        directions[l].h_0, directions[l].h_n = row_of(h_0, l), row_of(h_n, l)
        directions[l].c_0, directions[l].c_n = row_of(c_0, l), row_of(c_n, l)
    bytes = recurrent_stack_work_c(single, calls, L, threads)
    work = scratch_take(bytes)
    with nogil:
        recurrent_stack_c(single, calls, directions, L, threads, work)
        scratch_give(work, bytes)
    return y, h_n, c_n


cdef class RecurrentStream:
    """Stacked recurrent layers, one step at a time: a snapshot of the weights, and the state.

    `source`, where set, is called by `refresh` for the packed layers of now.
    """

    cdef readonly tuple layers                  # of RecurrentPacked
    cdef readonly tuple weights                 # copies, for C reads the small ones in each step, and a pickle all
    cdef readonly npy_intp batch_size
    cdef readonly tuple zoneout
    cdef public object source
    cdef fsq_recurrent_call *calls
    cdef fsq_recurrent_direction *directions
    cdef ndarray h, c, y                        # (L, B, P), (L, B, H) or None, (L, B, P)
    cdef size_t bytes
    cdef int L, type, threads
    cdef bint busy

    def __cinit__(self, tuple layers not None, npy_intp batch_size, tuple zoneout not None):
        cdef RecurrentPacked first, packed
        cdef fsq_recurrent_call above
        if not layers:
            raise ValueError("layers: expected at least one")
        first = layers[0]
        above = first.sizes
        above.I = above.P
        for l, packed in enumerate(layers):
            if not packed.fits(first.type, &above if l else &first.sizes, 1):
                raise ValueError(f"layers: {described(packed)} do not go above {described(first)}")
        self.L, self.type, self.batch_size, self.zoneout = <int>len(layers), first.type, batch_size, zoneout
        self.h = np.zeros((self.L, batch_size, first.sizes.P), first.dtype)
        self.c = np.zeros((self.L, batch_size, first.sizes.H), first.dtype) if first.sizes.cell == FSQ_LSTM else None
        self.y = np.empty_like(self.h)
        self.calls = <fsq_recurrent_call *>calloc(self.L, sizeof(fsq_recurrent_call))
        self.directions = <fsq_recurrent_direction *>calloc(self.L, sizeof(fsq_recurrent_direction))
        if self.calls == NULL or self.directions == NULL:
            raise MemoryError("no memory for a stream")
        self._take(layers)

    def __dealloc__(self):
        free(self.calls)
        free(self.directions)

    @property
    def input_size(self):
        return self.calls.I

    @property
    def hidden_size(self):
        return self.calls.H

    @property
    def output_size(self):
        """The width of h."""
        return self.calls.P

    @property
    def dtype(self):
        return self.h.dtype

    def step(self, x, out=None):
        """h of the top layer after the next step, (B, P), for x (B, I): a fresh array, or `out`, and then nothing is allocated."""
        cdef int threads = fsq_threads_get()
        cdef npy_intp B = self.batch_size, I = self.calls.I, P = self.calls.P
        cdef bint single = self.type == NPY_FLOAT
        cdef ndarray a, y
        cdef void *work
        (<RecurrentPacked>self.layers[0]).check()
        a = <ndarray>x if is_matrix(x, self.type, B, I) and PyArray_ISCARRAY_RO(<ndarray>x) else dense(self._converted("x", x, (B, I)))
        if out is None:
            y = new_array(2, PyArray_DIMS(self.h) + 1, self.type)
        else:
            y = <ndarray>out if is_matrix(out, self.type, B, P) and PyArray_ISCARRAY(<ndarray>out) else self._refuse_out(out)
        self._own()
        if threads != self.threads:
            self.threads, self.bytes = threads, recurrent_stack_work_c(single, self.calls, self.L, threads)
        work = scratch_take(self.bytes)
        self.busy, self.directions.x = True, PyArray_DATA(a)
        with nogil:
            recurrent_stack_c(single, self.calls, self.directions, self.L, threads, work)
            memcpy(PyArray_DATA(y), row_of(self.h, self.L - 1), B * P * (4 if single else 8))  # `out` may be x
            scratch_give(work, self.bytes)
        self.busy = False
        return y

    @property
    def state(self):
        """h (L, B, P), or with an LSTM (h, c), c (L, B, H): copies. May be set to such arrays, with one layer also to (B, P) and (B, H)."""
        return self.h.copy() if self.c is None else (self.h.copy(), self.c.copy())

    @state.setter
    def state(self, value):
        if self.c is None:
            self.h[...] = self._state("state", value, self.h)
            return
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"state: expected (h, c), got {type(value).__name__}")
        h, c = self._state("state: h", value[0], self.h), self._state("state: c", value[1], self.c)
        self.h[...], self.c[...] = h, c

    def reset(self, rows=None):
        """The state becomes zero: of all rows, or of those that `rows` (an index, a slice, a sequence or a mask) picks."""
        rows = slice(None) if rows is None else list(rows) if isinstance(rows, tuple) else rows
        try:
            np.empty(self.batch_size, bool)[rows]
        except IndexError as error:
            raise IndexError(f"rows: expected an index, a slice, a sequence or a mask for {self.batch_size} rows; {error}") from None
        for state in (self.h, self.c):
            if state is not None:
                state[:, rows] = 0

    def load(self, tuple layers not None):
        """Other weights of the same sizes and dtype; the state stays."""
        cdef RecurrentPacked ours, theirs
        if len(layers) != self.L:
            raise ValueError(f"layers: expected {self.L}, got {len(layers)}")
        for ours, theirs in zip(self.layers, layers):
            theirs.check()
            if not theirs.fits(self.type, &ours.sizes, 1):
                raise ValueError(f"layers: expected {described(ours)}, got {described(theirs)}")
        self._take(layers)

    def refresh(self):
        """Take the weights of the layers that this stream came from again; the state stays."""
        if self.source is None:
            raise RuntimeError("refresh: this stream has no layer to take weights from; make one with layer.stream()")
        self.load(self.source())

    cdef int _own(self) except -1:
        if self.busy:
            raise RuntimeError("this stream is in the middle of a step of another thread: give each thread its own")
        return 0

    cdef int _take(self, tuple layers) except -1:
        cdef fsq_recurrent_call *call
        cdef fsq_recurrent_direction *direction
        cdef RecurrentPacked packed
        cdef size_t bytes[WEIGHTS]
        cdef int l
        copies = tuple([type(w)(*[None if a is None else a.copy() for a in w]) for w in [packed.directions[0] for packed in layers]])
        self._own()
        self.layers, self.weights, self.threads = layers, copies, 0
        for l in range(self.L):
            packed, call, direction = layers[l], &self.calls[l], &self.directions[l]
            call[0] = packed.sizes
            call.T, call.end, call.B = 1, 1, self.batch_size
            call.zoneout_h, call.zoneout_c = self.zoneout
            dense_weights(copies[l], &direction.weights, bytes)
            direction.packed, direction.y_row = packed.memory, call.P
            direction.x, direction.y = row_of(self.y, l - 1) if l else NULL, row_of(self.y, l)
            direction.h_0 = direction.h_n = row_of(self.h, l)
            direction.c_0 = direction.c_n = row_of(self.c, l)
        return 0

    cdef ndarray _state(self, str name, value, ndarray state):
        if self.L == 1 and np.ndim(value) == 2:
            return self._converted(name, value, np.shape(state)[1:])
        return self._converted(name, value, np.shape(state))

    cdef ndarray _converted(self, str name, value, tuple shape):
        """`value` as an array of this shape and the stream's dtype, or an error that says what is wrong with it."""
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected a plain array, got a masked one; fill it first")
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"{name}: expected an array of shape {shape}, got {type(value).__name__}")
        if array.dtype.kind == "f" and not array.dtype.isnative:
            raise TypeError(f"{name}: expected this machine's byte order, got {array.dtype.str}; astype({str(self.dtype)!r}) converts it")
        if array.dtype.kind not in "iub" and array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: expected float32, float64, integers or bools (this stream computes in {self.dtype}), got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        return array.astype(self.dtype, copy=False)

    cdef ndarray _refuse_out(self, out):
        expected = f"a writable {self.dtype} array ({self.batch_size}, {self.output_size}) in C order"
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected {expected}, got {type(out).__name__}")
        kind = "" if out.flags.writeable else "read-only "
        raise ValueError(f"out: expected {expected}, got {kind}{out.dtype} {out.shape} with strides {out.strides}")


cdef str described(RecurrentPacked packed):
    """For a message."""
    return (f"{packed.dtype} weights of {packed.cell}, {len(packed.directions)} direction(s), input_size {packed.input_size}, "
            f"hidden_size {packed.hidden_size}, output_size {packed.output_size}{', layer norm' if packed.sizes.layer_norm else ''}")


cdef inline bint is_matrix(object a, int type, npy_intp rows, npy_intp columns) noexcept:
    return (PyArray_CheckExact(a) and PyArray_TYPE(<ndarray>a) == type and PyArray_NDIM(<ndarray>a) == 2
            and PyArray_DIM(<ndarray>a, 0) == rows and PyArray_DIM(<ndarray>a, 1) == columns)


# ---------------------------------------------------------------- attention_decoder

cdef enum:
    DECODER_WEIGHTS = 8                         # in one order in Python and in C: w_ih, w_hh, b_ih, b_hh, w_out, b_out, w_query, u

cdef extern from *:
    """
    _Static_assert(sizeof(fsq_attention_decoder_weights) == 8 * sizeof(void *), "DECODER_WEIGHTS");
    _Static_assert(sizeof(fsq_attention_decoder_gradients) - offsetof(fsq_attention_decoder_gradients, dw_ih) == 8 * sizeof(void *), "DECODER_WEIGHTS");
    """


cdef class AttentionDecoderPacked(Panels):
    """A decoder's weights in panels, and the arrays that they came from, which forward and BPTT read too."""

    cdef fsq_attention_decoder_call sizes
    cdef fsq_attention_decoder_weights pointers
    cdef object weights                         # backends.attention_decoder.DecoderWeights
    cdef uint64_t fingerprint[2]

    cdef bint fits(self, int type, const fsq_attention_decoder_call *sizes) noexcept:
        """Whether these panels hold weights of these sizes, for the instruction set in use."""
        return (self.type == type and self.isa == fsq_isa_name() and self.sizes.cell == sizes.cell and self.sizes.additive == sizes.additive
                and self.sizes.projects == sizes.projects and self.sizes.I == sizes.I and self.sizes.H == sizes.H and self.sizes.M == sizes.M
                and self.sizes.A == sizes.A)


def attention_decoder_pack(str cell not None, weights, AttentionDecoderPacked packed=None):
    """A decoder's weights in panels: `packed` itself where it holds these very numbers."""
    cdef int threads = fsq_threads_get(), i, type
    cdef fsq_attention_decoder_call sizes
    cdef fsq_attention_decoder_weights pointers
    cdef const void **each = &pointers.w_ih
    cdef size_t bytes[DECODER_WEIGHTS]
    cdef uint64_t[2] state = [0, 0]
    cdef ndarray a, w_ih = weights.w_ih, w_hh = weights.w_hh, w_out = weights.w_out, w_query = weights.w_query
    cdef list arrays = [dense_or_none(a) for a in weights]
    cdef bint single
    type = PyArray_TYPE(w_ih)
    single = type == NPY_FLOAT
    memset(&sizes, 0, sizeof(sizes))
    sizes.cell, sizes.additive, sizes.projects = CELLS[cell], weights.u is not None, w_query is not None
    sizes.H = PyArray_DIM(w_hh, 1)
    sizes.M = PyArray_DIM(w_out, 1) - sizes.H
    sizes.I = PyArray_DIM(w_ih, 1) - sizes.M
    sizes.A = sizes.M if w_query is None else PyArray_DIM(w_query, 0)
    for i in range(DECODER_WEIGHTS):
        a = arrays[i]
        each[i], bytes[i] = pointer(a), bytes_of(a)
    with nogil:
        for i in range(DECODER_WEIGHTS):
            fsq_fingerprint(state, each[i], bytes[i], threads)
    if packed is None or not packed.fits(type, &sizes) or packed.fingerprint[0] != state[0] or packed.fingerprint[1] != state[1]:
        packed = AttentionDecoderPacked.__new__(AttentionDecoderPacked)
        packed.sizes = sizes
        packed.fingerprint[0], packed.fingerprint[1] = state[0], state[1]
        packed.reserve(type, attention_decoder_packed_size_c(single, &sizes))
        with nogil:
            attention_decoder_pack_c(single, packed.memory, &sizes, &pointers, threads)
    packed.pointers, packed.weights = pointers, weights._make(arrays)
    return packed


cdef class AttentionDecoderCache:
    """A forward call: its arguments as C takes them, and what attention_decoder_backward needs of its results."""

    cdef fsq_attention_decoder_call call
    cdef fsq_attention_decoder_arrays arrays
    cdef AttentionDecoderPacked packed
    cdef object weights                         # of then: `packed` may get other arrays of the same numbers
    cdef tuple held                             # the arrays that `call` and `arrays` point to


def attention_decoder_forward(ndarray x not None, ndarray keys, ndarray memory not None, ndarray h_0, ndarray c_0, AttentionDecoderPacked packed not None,
                              double scale, ndarray lengths, ndarray memory_lengths, bint training):
    """x (T, B, I), keys (B, S, A) or None, memory (B, S, M) -> outputs (T, B, H), h_n, c_n, a (T, B, S), AttentionDecoderCache in training."""
    cdef int threads = fsq_threads_get(), type = packed.type
    cdef bint single = type == NPY_FLOAT, lstm = packed.sizes.cell == FSQ_LSTM
    cdef AttentionDecoderCache run = AttentionDecoderCache.__new__(AttentionDecoderCache)
    cdef fsq_attention_decoder_call *call = &run.call
    cdef fsq_attention_decoder_arrays *to = &run.arrays
    cdef ndarray outputs, h_n, c_n = None, a, both, cells = None, queries = None, gates = None
    cdef npy_intp[2] dims = [0, 0]
    cdef size_t bytes
    cdef void *work
    packed.check()
    x, keys, memory, h_0, c_0 = dense(x), dense_or_none(keys), dense(memory), dense_or_none(h_0), dense_or_none(c_0)
    lengths, memory_lengths = [None if n is None else dense(n.copy() if training else n) for n in (lengths, memory_lengths)]    # backward trusts them
    call[0] = packed.sizes
    call.T, call.B, call.S, call.scale = PyArray_DIM(x, 0), PyArray_DIM(x, 1), PyArray_DIM(memory, 1), scale
    call.lengths, call.memory_lengths = <const int64_t *>pointer(lengths), <const int64_t *>pointer(memory_lengths)
    dims[0] = call.T * call.B if lengths is None else lengths.sum()
    outputs, a = empty(type, (call.T, call.B, call.H)), empty(type, (call.T, call.B, call.S))
    h_n = empty(type, (call.B, call.H))
    dims[1] = call.H + call.M
    both = new_array(2, dims, type)
    dims[1] = call.H
    if lstm:
        c_n, cells = empty_like(h_n), new_array(2, dims, type)
    dims[1] = call.A
    if call.projects:
        queries = new_array(2, dims, type)
    dims[1] = 4 * call.H
    if training:
        gates = new_array(2, dims, type)
    if lengths is not None:
        zero_past_end(outputs, call.lengths, call.T, call.B)
        zero_past_end(a, call.lengths, call.T, call.B)
    run.packed, run.weights = packed, packed.weights
    run.held = (x, keys, memory, h_0, c_0, lengths, memory_lengths, outputs, a, both, cells, queries, gates)
    to.packed, to.weights = packed.memory, packed.pointers
    to.x, to.keys, to.memory, to.h_0, to.c_0 = pointer(x), pointer(keys), pointer(memory), pointer(h_0), pointer(c_0)
    to.outputs, to.h_n, to.c_n, to.a = pointer(outputs), pointer(h_n), pointer(c_n), pointer(a)
    to.both, to.cells, to.queries, to.gates = pointer(both), pointer(cells), pointer(queries), pointer(gates)
    bytes = attention_decoder_forward_work_c(single, call, threads)
    work = scratch_take(bytes)
    with nogil:
        attention_decoder_forward_c(single, call, to, threads, work)
        scratch_give(work, bytes)
    to.h_n, to.c_n = NULL, NULL                 # the caller's, and not kept
    return outputs, h_n, c_n, a, run if training else None


def attention_decoder_backward(AttentionDecoderCache cache not None, ndarray doutputs, ndarray dh_n, ndarray dc_n, ndarray da):
    """Upstream gradients, each None = 0 -> a dict: dx, dkeys, dmemory, dh_0, dc_0 and weights."""
    cdef int threads = fsq_threads_get(), type = cache.packed.type, i
    cdef bint single = type == NPY_FLOAT
    cdef fsq_attention_decoder_call *call = &cache.call
    cdef fsq_attention_decoder_gradients g
    cdef void **each = &g.dw_ih
    cdef ndarray dx, dkeys = None, dmemory, dh_0, dc_0 = None
    cdef list weights = [None if a is None else np.empty_like(a) for a in cache.weights]
    cdef size_t bytes
    cdef void *work
    cache.packed.check()
    memset(&g, 0, sizeof(g))
    doutputs, dh_n, dc_n, da = dense_or_none(doutputs), dense_or_none(dh_n), dense_or_none(dc_n), dense_or_none(da)
    dx, dmemory, dh_0 = empty(type, (call.T, call.B, call.I)), empty(type, (call.B, call.S, call.M)), empty(type, (call.B, call.H))
    if call.additive:
        dkeys = empty(type, (call.B, call.S, call.A))
    if call.cell == FSQ_LSTM:
        dc_0 = empty_like(dh_0)
    if call.lengths != NULL:
        zero_past_end(dx, call.lengths, call.T, call.B)
    g.doutputs, g.dh_n, g.dc_n, g.da = pointer(doutputs), pointer(dh_n), pointer(dc_n), pointer(da)
    g.dx, g.dkeys, g.dmemory, g.dh_0, g.dc_0 = pointer(dx), pointer(dkeys), pointer(dmemory), pointer(dh_0), pointer(dc_0)
    for i in range(DECODER_WEIGHTS):
        each[i] = pointer(weights[i])
    bytes = attention_decoder_backward_work_c(single, call, threads)
    work = scratch_take(bytes)
    with nogil:
        attention_decoder_backward_c(single, call, &cache.arrays, &g, threads, work)
        scratch_give(work, bytes)
    return {"dx": dx, "dkeys": dkeys, "dmemory": dmemory, "dh_0": dh_0, "dc_0": dc_0, "weights": cache.weights._make(weights)}


# ---------------------------------------------------------------- attention

cdef ndarray headed(ndarray a, fsq_attention_array *view):
    """`a` (B, heads, T, D) as C takes it: rows that are contiguous, at any strides of whole elements; a copy where they are not."""
    cdef npy_intp size = 4 if is_single(a) else 8
    a = strided(a)
    if PyArray_DIM(a, 3) > 1 and PyArray_STRIDE(a, 3) != size:
        a = dense(a.copy())
    view.data, view.batch, view.head, view.row = PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return a


cdef ndarray empty_headed(ndarray like, npy_intp D, fsq_attention_array *view):
    """A new array (B, heads, T, D) with as many rows as `like`, whose axes lie in memory in the same order."""
    cdef npy_intp B = PyArray_DIM(like, 0), heads = PyArray_DIM(like, 1), T = PyArray_DIM(like, 2)
    cdef npy_intp b = PyArray_STRIDE(like, 0), h = PyArray_STRIDE(like, 1), t = PyArray_STRIDE(like, 2)
    cdef int type = PyArray_TYPE(like)
    cdef ndarray a
    if h >= t or heads <= 1 or T <= 1:
        a = empty(type, (B, heads, T, D))
    elif b >= t or B <= 1:
        a = empty(type, (B, T, heads, D)).transpose(0, 2, 1, 3)
    else:
        a = empty(type, (T, B, heads, D)).transpose(1, 2, 0, 3)
    view.data, view.batch, view.head, view.row = PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return a


cdef uint64_t attention_key(options) except? 0:
    """Philox's key for the weights' masks."""
    cdef uint32_t[4] counter = [0, options.layer, options.call, 0x61747465]
    cdef uint32_t out[4]
    fsq_philox(out, options.seed, counter)
    return out[0] | <uint64_t>out[1] << 32


cdef ndarray attention_call(fsq_attention_call *call, ndarray q, ndarray k, ndarray v, ndarray mask, ndarray key_lengths, options):
    """Fills `call`; returns the mask that it points into, which must outlive it. key_lengths is dense."""
    cdef npy_intp size
    call.B, call.heads, call.Tq, call.D = PyArray_DIM(q, 0), PyArray_DIM(q, 1), PyArray_DIM(q, 2), PyArray_DIM(q, 3)
    call.kv_heads, call.Tk, call.Dv = PyArray_DIM(k, 1), PyArray_DIM(k, 2), PyArray_DIM(v, 3)
    call.scale, call.causal, call.offset, call.window, call.dropout = options[:5]
    call.tiles = options.tiles
    call.key = attention_key(options) if call.dropout > 0 else 0
    call.key_lengths = <const int64_t *>pointer(key_lengths)
    call.mask, call.mask_is_bool = NULL, 0
    if mask is not None:
        call.mask_is_bool = PyArray_TYPE(mask) != PyArray_TYPE(q)
        size = 1 if call.mask_is_bool else 4 if is_single(q) else 8
        if not call.mask_is_bool:
            mask = strided(mask)
        call.mask = PyArray_DATA(mask)
        call.mask_batch = PyArray_STRIDE(mask, 0) / size if PyArray_DIM(mask, 0) > 1 else 0
        call.mask_head = PyArray_STRIDE(mask, 1) / size if PyArray_DIM(mask, 1) > 1 else 0
        call.mask_query = PyArray_STRIDE(mask, 2) / size if PyArray_DIM(mask, 2) > 1 else 0
        call.mask_key = PyArray_STRIDE(mask, 3) / size if PyArray_DIM(mask, 3) > 1 else 0
    return mask


def attention_forward(ndarray q not None, ndarray k not None, ndarray v not None, ndarray mask, ndarray key_lengths, options not None,
                      bint training, bint weights):
    """y (B, heads, Tq, Dv), lse (B, heads, Tq) in training, the weights (B, heads, Tq, Tk) where asked for."""
    cdef fsq_attention_array qs, ks, vs, ys
    cdef fsq_attention_call call
    cdef int threads = fsq_threads_get()
    cdef bint single = is_single(q)
    cdef ndarray y, lse = None, w = None
    cdef size_t bytes
    cdef void *work
    q, k, v, key_lengths = headed(q, &qs), headed(k, &ks), headed(v, &vs), dense_or_none(key_lengths)
    mask = attention_call(&call, q, k, v, mask, key_lengths, options)
    y = empty_headed(q, call.Dv, &ys)
    if training:
        lse = empty(PyArray_TYPE(q), (call.B, call.heads, call.Tq))
    if weights:
        w = empty(PyArray_TYPE(q), (call.B, call.heads, call.Tq, call.Tk))
    if call.B * call.heads * call.Tq == 0:
        return y, lse, w
    bytes = attention_forward_work_c(single, &call, threads)
    work = scratch_take(bytes)
    with nogil:
        attention_forward_c(single, &ys, pointer(lse), pointer(w), &qs, &ks, &vs, &call, threads, work)
        scratch_give(work, bytes)
    return y, lse, w


def attention_backward(ndarray q not None, ndarray k not None, ndarray v not None, ndarray y not None, ndarray lse not None, ndarray dy not None,
                       ndarray mask, ndarray key_lengths, options not None, ndarray weights, ndarray dweights, bint need_dscores, tuple out not None):
    """dq, dk, dv, new or written to the three arrays of `out`, and dscores (B, heads, Tq, Tk) where asked for."""
    cdef fsq_attention_array qs, ks, vs, ys, dys, dqs, dks, dvs
    cdef fsq_attention_call call
    cdef int threads = fsq_threads_get()
    cdef bint single = is_single(q)
    cdef ndarray dq, dk, dv, dscores = None
    cdef size_t bytes
    cdef void *work
    q, k, v, y, dy = headed(q, &qs), headed(k, &ks), headed(v, &vs), headed(y, &ys), headed(dy, &dys)
    lse, key_lengths, weights, dweights = dense(lse), dense_or_none(key_lengths), dense_or_none(weights), dense_or_none(dweights)
    mask = attention_call(&call, q, k, v, mask, key_lengths, options)
    dq = empty_headed(q, call.D, &dqs) if out[0] is None else headed_out(out[0], &dqs)
    dk = empty_headed(k, call.D, &dks) if out[1] is None else headed_out(out[1], &dks)
    dv = empty_headed(v, call.Dv, &dvs) if out[2] is None else headed_out(out[2], &dvs)
    if need_dscores:
        dscores = empty(PyArray_TYPE(q), (call.B, call.heads, call.Tq, call.Tk))
    if call.B * call.kv_heads == 0:
        return dq, dk, dv, dscores
    bytes = attention_backward_work_c(single, &call, threads)
    work = scratch_take(bytes)
    with nogil:
        attention_backward_c(single, &dqs, &dks, &dvs, pointer(dscores), &qs, &ks, &vs, &ys, pointer(lse), &dys, pointer(weights), pointer(dweights),
                             &call, threads, work)
        scratch_give(work, bytes)
    return dq, dk, dv, dscores


cdef ndarray headed_out(ndarray a, fsq_attention_array *view):
    """An array that is written where it lies."""
    if headed(a, view) is not a:
        raise ValueError("an array to be written: expected contiguous rows")
    return a


# ---------------------------------------------------------------- convolution, pooling, batch norm

cdef fsq_conv_call conv_call(ndarray x, ndarray weight, int groups, window):
    """x (N, groups C, H, W), weight (groups O, C, kernel)."""
    cdef fsq_conv_call c
    c.N, c.groups, c.C, c.O = PyArray_DIM(x, 0), groups, PyArray_DIM(weight, 1), PyArray_DIM(weight, 0) / groups
    c.H, c.W = PyArray_DIM(x, 2), PyArray_DIM(x, 3)
    (c.kernel_h, c.kernel_w), (c.stride_h, c.stride_w), (c.dilation_h, c.dilation_w), (c.top, c.left), (c.out_h, c.out_w) = window
    return c


def conv_forward(ndarray x not None, ndarray weight not None, ndarray bias, int groups, window not None):
    """x (N, groups C, H, W), weight (groups O, C, *kernel), bias (groups O,) or None -> y (N, groups O, *out)."""
    cdef ndarray a = dense(x), w = dense(weight), b = dense_or_none(bias)
    cdef fsq_conv_call call = conv_call(a, w, groups, window)
    cdef ndarray y = empty(PyArray_TYPE(a), (call.N, PyArray_DIM(w, 0), call.out_h, call.out_w))
    cdef int threads = fsq_threads_get()
    cdef size_t bytes = conv_work_c(is_single(a), &call, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        conv_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), PyArray_DATA(w), pointer(b), &call, threads, work)
        scratch_give(work, bytes)
    return y


def conv_backward(ndarray dy not None, ndarray x not None, ndarray weight not None, int groups, window not None, bint need_dx, bint need_dweight,
                  bint need_dbias):
    """dx, dweight, dbias (groups O,), None where not needed."""
    cdef ndarray g = dense(dy), a = dense(x), w = dense(weight)
    cdef fsq_conv_call call = conv_call(a, w, groups, window)
    cdef ndarray dx = empty_like(a) if need_dx else None, dweight = empty_like(w) if need_dweight else None
    cdef ndarray dbias = empty(PyArray_TYPE(a), (PyArray_DIM(w, 0),)) if need_dbias else None
    cdef int threads = fsq_threads_get()
    cdef size_t bytes = conv_work_c(is_single(a), &call, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        conv_backward_c(is_single(a), pointer(dx), pointer(dweight), pointer(dbias), PyArray_DATA(g), PyArray_DATA(a), PyArray_DATA(w), &call,
                        threads, work)
        scratch_give(work, bytes)
    return dx, dweight, dbias


cdef fsq_max_pool_call max_pool_call(npy_intp H, npy_intp W, window):
    cdef fsq_max_pool_call c
    c.H, c.W = H, W
    (c.kernel_h, c.kernel_w), (c.stride_h, c.stride_w), (c.dilation_h, c.dilation_w), (c.padding_h, c.padding_w), (c.out_h, c.out_w) = window
    return c


def max_pool_forward(ndarray x not None, window not None):
    """x (N, C, H, W) -> y (N, C, *out) and the place of each in its plane, int64."""
    cdef ndarray a = dense(x)
    cdef fsq_max_pool_call call = max_pool_call(PyArray_DIM(a, 2), PyArray_DIM(a, 3), window)
    cdef npy_intp N = PyArray_DIM(a, 0), C = PyArray_DIM(a, 1)
    cdef ndarray y = empty(PyArray_TYPE(a), (N, C, call.out_h, call.out_w)), places = empty(NPY_INT64, (N, C, call.out_h, call.out_w))
    cdef int threads = fsq_threads_get()
    with nogil:
        max_pool_forward_c(is_single(a), PyArray_DATA(y), <int64_t *>PyArray_DATA(places), PyArray_DATA(a), N * C, &call, threads)
    return y, places


def max_pool_backward(ndarray dy not None, ndarray places not None, tuple shape not None, window not None):
    """dx of this shape (N, C, H, W)."""
    cdef ndarray g = dense(dy), p = dense(places), dx = empty(PyArray_TYPE(g), shape)
    cdef fsq_max_pool_call call = max_pool_call(shape[2], shape[3], window)
    cdef npy_intp planes = shape[0] * shape[1]
    cdef int threads = fsq_threads_get()
    with nogil:
        max_pool_backward_c(is_single(g), PyArray_DATA(dx), PyArray_DATA(g), <const int64_t *>PyArray_DATA(p), planes, &call, threads)
    return dx


cdef inline npy_intp places_of(ndarray x):
    """L of x (N, C, L) or (N, C)."""
    return PyArray_DIM(x, 2) if PyArray_NDIM(x) == 3 else 1


def batch_norm_forward(ndarray x not None, ndarray weight, ndarray bias, ndarray mean, ndarray variance, double eps):
    """x (N, C) or (N, C, L), weight and bias (C,) or None -> y, and mean and variance (C,): the batch's, or those given."""
    cdef ndarray a = dense(x), w = dense_or_none(weight), b = dense_or_none(bias), y = empty_like(a)
    cdef npy_intp N = PyArray_DIM(a, 0), C = PyArray_DIM(a, 1), L = places_of(a)
    cdef bint given = mean is not None
    cdef ndarray m = dense(mean) if given else empty(PyArray_TYPE(a), (C,)), v = dense(variance) if given else empty(PyArray_TYPE(a), (C,))
    cdef int threads = fsq_threads_get()
    with nogil:
        batch_norm_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(m), PyArray_DATA(v), PyArray_DATA(a), pointer(w), pointer(b), N, C, L, eps,
                             given, threads)
    return y, m, v


def batch_norm_backward(ndarray dy not None, ndarray x not None, ndarray weight, ndarray mean not None, ndarray variance not None, double eps,
                        bint given, bint need_dx, bint need_dweight, bint need_dbias):
    """dx, dweight (C,), dbias (C,), None where not needed."""
    cdef ndarray g = dense(dy), a = dense(x), w = dense_or_none(weight), m = dense(mean), v = dense(variance)
    cdef npy_intp N = PyArray_DIM(a, 0), C = PyArray_DIM(a, 1), L = places_of(a)
    cdef ndarray dx = empty_like(a) if need_dx else None
    cdef ndarray dweight = empty(PyArray_TYPE(a), (C,)) if need_dweight else None, dbias = empty(PyArray_TYPE(a), (C,)) if need_dbias else None
    cdef int threads = fsq_threads_get()
    with nogil:
        batch_norm_backward_c(is_single(a), pointer(dx), pointer(dweight), pointer(dbias), PyArray_DATA(g), PyArray_DATA(a), PyArray_DATA(m),
                              PyArray_DATA(v), pointer(w), N, C, L, eps, given, threads)
    return dx, dweight, dbias


# ---------------------------------------------------------------- pointwise, softmax, layer_norm, cross_entropy

def pointwise_forward(ndarray x not None, fsq_function function, double parameter):
    """y = f(x)."""
    cdef ndarray a = dense(x), y = empty_like(a)
    cdef int threads = fsq_threads_get()
    with nogil:
        pointwise_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), PyArray_SIZE(a), function, parameter, threads)
    return y


def pointwise_backward(ndarray saved not None, ndarray dy not None, fsq_function function, double parameter):
    """dx = dy f'(x) from `saved` = y, but for log, erf and those after it x."""
    cdef ndarray s = dense(saved), g = dense(dy), dx = empty_like(s)
    cdef int threads = fsq_threads_get()
    with nogil:
        pointwise_backward_c(is_single(s), PyArray_DATA(dx), PyArray_DATA(s), PyArray_DATA(g), PyArray_SIZE(s), function, parameter, threads)
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


def log_softmax_forward(ndarray x not None):
    """The logarithm of softmax over the last axis."""
    cdef ndarray a = dense(x), y = empty_like(a)
    cdef int threads = fsq_threads_get()
    cdef npy_intp M = rows(a), N = last_axis(a)
    with nogil:
        log_softmax_forward_c(is_single(a), PyArray_DATA(y), PyArray_DATA(a), M, N, threads)
    return y


def log_softmax_backward(ndarray y not None, ndarray dy not None):
    """dx = dy - exp(y) sum(dy) over the last axis."""
    cdef ndarray a = dense(y), g = dense(dy), dx = empty_like(a)
    cdef int threads = fsq_threads_get()
    cdef npy_intp M = rows(a), N = last_axis(a)
    with nogil:
        log_softmax_backward_c(is_single(a), PyArray_DATA(dx), PyArray_DATA(a), PyArray_DATA(g), M, N, threads)
    return dx


def layer_norm_forward(ndarray x not None, ndarray residual, ndarray weight, ndarray bias, double eps, bint centred):
    """y, s (x itself without a residual), mean (M,) or None, rstd (M,)."""
    cdef ndarray a = dense(x), r = dense_or_none(residual), w = dense_or_none(weight), b = dense_or_none(bias)
    cdef ndarray y = empty_like(a), s = None if r is None else empty_like(a)
    cdef npy_intp N = last_axis(a), M = rows(a)
    cdef ndarray mean = empty(PyArray_TYPE(a), (M,)) if centred else None, rstd = empty(PyArray_TYPE(a), (M,))
    cdef int threads = fsq_threads_get()
    with nogil:
        layer_norm_forward_c(is_single(a), PyArray_DATA(y), pointer(s), pointer(mean), PyArray_DATA(rstd), PyArray_DATA(a), pointer(r), pointer(w),
                             pointer(b), M, N, eps, centred, threads)
    return y, a if s is None else s, mean, rstd


def layer_norm_backward(ndarray dy not None, ndarray ds, ndarray s not None, ndarray mean, ndarray rstd not None, ndarray weight,
                        bint need_dx, bint need_dweight, bint need_dbias):
    """dx, dweight (N,), dbias (N,), None where not needed; mean None: RMS norm."""
    cdef ndarray g = dense(dy), gs = dense_or_none(ds), a = dense(s), w = dense_or_none(weight)
    cdef npy_intp N = last_axis(a), M = rows(a)
    cdef ndarray dx = empty_like(a) if need_dx else None
    cdef ndarray dweight = empty(PyArray_TYPE(a), (N,)) if need_dweight else None, dbias = empty(PyArray_TYPE(a), (N,)) if need_dbias else None
    cdef int threads = fsq_threads_get()
    cdef size_t bytes = layer_norm_backward_work_c(is_single(a), M, N)
    cdef void *work = scratch_take(bytes)
    with nogil:
        layer_norm_backward_c(is_single(a), pointer(dx), pointer(dweight), pointer(dbias), PyArray_DATA(g), pointer(gs), PyArray_DATA(a),
                              pointer(mean), PyArray_DATA(rstd), pointer(w), M, N, mean is not None, threads, work)
        scratch_give(work, bytes)
    return dx, dweight, dbias


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


def linear_cross_entropy_forward(ndarray x not None, ndarray weight not None, ndarray bias, ndarray targets not None, int64_t ignore_index,
                                 double smoothing):
    """x (N, H), weight (V, H), bias (V,) or None, targets (N,) int64 -> losses (N,), lse (N,)."""
    cdef ndarray a = dense(x), w = dense(weight), b = dense_or_none(bias), t = dense(targets)
    cdef npy_intp N = PyArray_DIM(a, 0), H = PyArray_DIM(a, 1), V = PyArray_DIM(w, 0)
    cdef ndarray losses = empty(PyArray_TYPE(a), (N,)), lse = empty(PyArray_TYPE(a), (N,))
    cdef int threads = fsq_threads_get()
    cdef bint single = is_single(a)
    cdef size_t bytes = linear_cross_entropy_forward_work_c(single, N, H, V, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        linear_cross_entropy_forward_c(single, PyArray_DATA(losses), PyArray_DATA(lse), PyArray_DATA(a), PyArray_DATA(w), pointer(b),
                                       <const int64_t *>PyArray_DATA(t), N, H, V, ignore_index, smoothing, threads, work)
        scratch_give(work, bytes)
    return losses, lse


def linear_cross_entropy_backward(ndarray lse not None, ndarray x not None, ndarray weight not None, ndarray bias, ndarray targets not None,
                                  ndarray dlosses not None, int64_t ignore_index, double smoothing, bint need_dx, bint need_dweight,
                                  bint need_dbias):
    """dx (N, H), dweight (V, H), dbias (V,), None where not needed; dlosses (N,), or one number for every row."""
    cdef ndarray l = dense(lse), a = dense(x), w = dense(weight), b = dense_or_none(bias), t = dense(targets), g = dense(dlosses)
    cdef npy_intp N = PyArray_DIM(a, 0), H = PyArray_DIM(a, 1), V = PyArray_DIM(w, 0)
    cdef ndarray dx = empty_like(a) if need_dx else None, dweight = empty_like(w) if need_dweight else None
    cdef ndarray dbias = empty(PyArray_TYPE(a), (V,)) if need_dbias else None
    cdef int threads = fsq_threads_get()
    cdef bint single = is_single(a)
    cdef size_t bytes = linear_cross_entropy_backward_work_c(single, N, H, V, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        linear_cross_entropy_backward_c(single, pointer(dx), pointer(dweight), pointer(dbias), PyArray_DATA(l), PyArray_DATA(a), PyArray_DATA(w),
                                        pointer(b), <const int64_t *>PyArray_DATA(t), PyArray_DATA(g), PyArray_SIZE(g) != 1, N, H, V, ignore_index,
                                        smoothing, threads, work)
        scratch_give(work, bytes)
    return dx, dweight, dbias


# ---------------------------------------------------------------- additive attention

cdef inline npy_intp mask_stride(ndarray a, int axis) noexcept:
    """In elements of a dense mask with three axes; 0 where it is broadcast."""
    cdef npy_intp step = 1
    cdef int i
    if a is None or PyArray_DIM(a, axis) == 1:
        return 0
    for i in range(axis + 1, 3):
        step *= PyArray_DIM(a, i)
    return step


def additive_attention_forward(ndarray q not None, ndarray k not None, ndarray v not None, ndarray u not None, ndarray mask, ndarray key_lengths,
                               bint need_weights):
    """y (B, Tq, Dv) and, where needed, the weights (B, Tq, Tk), else None; mask: of bool or q's type, each axis 1 or in full."""
    cdef ndarray a = dense(q), b = dense(k), c = dense(v), d = dense(u), m = dense_or_none(mask), lengths = dense_or_none(key_lengths)
    cdef npy_intp B = PyArray_DIM(a, 0), Tq = PyArray_DIM(a, 1), D = PyArray_DIM(a, 2), Tk = PyArray_DIM(b, 1), Dv = PyArray_DIM(c, 2)
    cdef ndarray y = empty(PyArray_TYPE(a), (B, Tq, Dv)), weights = empty(PyArray_TYPE(a), (B, Tq, Tk)) if need_weights else None
    cdef bint single = is_single(a), is_bool = m is not None and PyArray_TYPE(m) == NPY_BOOL
    cdef npy_intp by_row = mask_stride(m, 0), by_query = mask_stride(m, 1), by_key = mask_stride(m, 2)
    cdef int threads = fsq_threads_get()
    cdef size_t bytes = additive_attention_forward_work_c(single, Tq, Tk, D, Dv, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        additive_attention_forward_c(single, PyArray_DATA(y), pointer(weights), PyArray_DATA(a), PyArray_DATA(b), PyArray_DATA(c), PyArray_DATA(d),
                                     <const int64_t *>pointer(lengths), <const unsigned char *>(pointer(m) if is_bool else NULL),
                                     NULL if is_bool else pointer(m), by_row, by_query, by_key, B, Tq, Tk, D, Dv, threads, work)
        scratch_give(work, bytes)
    return y, weights


def additive_attention_backward(ndarray q not None, ndarray k not None, ndarray v not None, ndarray u not None, ndarray weights not None, ndarray dy,
                                ndarray dweights, ndarray key_lengths):
    """dq, dk, dv, du and dL/d(scores) (B, Tq, Tk)."""
    cdef ndarray a = dense(q), b = dense(k), c = dense(v), d = dense(u), w = dense(weights), g = dense_or_none(dy), more = dense_or_none(dweights)
    cdef ndarray lengths = dense_or_none(key_lengths)
    cdef ndarray dq = empty_like(a), dk = empty_like(b), dv = empty_like(c), du = empty_like(d), dscores = empty_like(w)
    cdef npy_intp B = PyArray_DIM(a, 0), Tq = PyArray_DIM(a, 1), D = PyArray_DIM(a, 2), Tk = PyArray_DIM(b, 1), Dv = PyArray_DIM(c, 2)
    cdef bint single = is_single(a)
    cdef int threads = fsq_threads_get()
    cdef size_t bytes = additive_attention_backward_work_c(single, B, Tq, Tk, D, Dv, threads)
    cdef void *work = scratch_take(bytes)
    with nogil:
        additive_attention_backward_c(single, PyArray_DATA(dq), PyArray_DATA(dk), PyArray_DATA(dv), PyArray_DATA(du), PyArray_DATA(dscores),
                                      PyArray_DATA(w), PyArray_DATA(a), PyArray_DATA(b), PyArray_DATA(c), PyArray_DATA(d), pointer(g), pointer(more),
                                      <const int64_t *>pointer(lengths), B, Tq, Tk, D, Dv, threads, work)
        scratch_give(work, bytes)
    return dq, dk, dv, du, dscores


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


def sgd(ndarray w not None, ndarray velocity, ndarray grad not None, ndarray rows, double lr, double momentum, bint nesterov, bint first,
        double weight_decay):
    """One step of stochastic gradient descent; velocity None without momentum; rows None, or int64, those that grad belongs to."""
    cdef ndarray g = dense(grad), r = dense_or_none(rows)
    cdef void *a = writable(w)
    cdef void *v = writable(velocity)
    cdef npy_intp n = PyArray_SIZE(g), width = 0 if r is None else last_axis(g)
    cdef int threads = fsq_threads_get()
    with nogil:
        sgd_c(is_single(w), a, v, PyArray_DATA(g), <const int64_t *>pointer(r), n, width, lr, momentum, nesterov, first, weight_decay, threads)


def adagrad(ndarray w not None, ndarray total not None, ndarray grad not None, ndarray rows, double lr, double eps, double weight_decay):
    """One step of Adagrad; rows as for sgd."""
    cdef ndarray g = dense(grad), r = dense_or_none(rows)
    cdef void *a = writable(w)
    cdef void *s = writable(total)
    cdef npy_intp n = PyArray_SIZE(g), width = 0 if r is None else last_axis(g)
    cdef int threads = fsq_threads_get()
    with nogil:
        adagrad_c(is_single(w), a, s, PyArray_DATA(g), <const int64_t *>pointer(r), n, width, lr, eps, weight_decay, threads)


def rmsprop(ndarray w not None, ndarray square not None, ndarray velocity, ndarray mean, ndarray grad not None, double lr, double alpha,
            double eps, double momentum, double weight_decay):
    """One step of RMSprop; velocity None without momentum, mean None where it is not centred."""
    cdef ndarray g = dense(grad)
    cdef void *a = writable(w)
    cdef void *s = writable(square)
    cdef void *v = writable(velocity)
    cdef void *m = writable(mean)
    cdef int threads = fsq_threads_get()
    with nogil:
        rmsprop_c(is_single(w), a, s, v, m, PyArray_DATA(g), PyArray_SIZE(g), lr, alpha, eps, momentum, weight_decay, threads)


def adam(ndarray w not None, ndarray m not None, ndarray v not None, ndarray grad not None, ndarray rows, double lr, double beta1, double beta2,
         double eps, double weight_decay, bint decoupled, int64_t step):
    """One step of Adam or, decoupled, of AdamW; rows as for sgd."""
    cdef ndarray g = dense(grad), r = dense_or_none(rows)
    cdef void *a = writable(w)
    cdef void *first = writable(m)
    cdef void *second = writable(v)
    cdef npy_intp n = PyArray_SIZE(g), width = 0 if r is None else last_axis(g)
    cdef int threads = fsq_threads_get()
    with nogil:
        adam_c(is_single(w), a, first, second, PyArray_DATA(g), <const int64_t *>pointer(r), n, width, lr, beta1, beta2, eps, weight_decay,
               decoupled, step, threads)
