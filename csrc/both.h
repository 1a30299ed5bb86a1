// A function for the host and, under nvcc, for the device as well.
#pragma once

#ifdef __CUDACC__
#define ADAPTIVERL_BOTH __host__ __device__ inline
#else
#define ADAPTIVERL_BOTH inline
#endif
