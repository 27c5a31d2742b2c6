// What the kernels need of the hardware beyond CUDA C++: tensor-core products, asynchronous copies, loads and stores that other blocks see.
//
// Each function is one instruction of the PTX ISA. Beside it stands what it means in plain C++, for the emulator that runs the same
// kernels on a CPU (tests/cuda/emulator); FSQ_EMULATED chooses.
#pragma once

// The dynamic shared memory of the block, as bytes.
#ifndef FSQ_EMULATED
#define FSQ_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define FSQ_SHARED(name) unsigned char *const name = emu::emu_self->shared
#endif
