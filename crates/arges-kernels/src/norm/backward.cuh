// Gradients of norms. With r = 1 / sqrt(mean(x^2) + eps) and u the gradient by x r weight:
// dx = r (u weight - x r^2 mean(u weight x)), and dweight is the sum over rows of u x r. A block takes some rows one after
// the other and leaves its part of dweight; the parts are added in order. Here is what the kernels share.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

__device__ __forceinline__ float4 widen(float4 x) { return x; }
__device__ __forceinline__ float4 widen(uint2 pair) {
    return make_float4(low_float(pair.x), high_float(pair.x), low_float(pair.y), high_float(pair.y));
}

// Four values as they lie in memory; nothing is read, and they are zeros, where not `present`. Reads of several that wait
// for no sum in between are under way together.
__device__ __forceinline__ float4 four_of(const float* at, bool present = true) {
    return present ? *reinterpret_cast<const float4*>(at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}
__device__ __forceinline__ uint2 four_of(const bf16* at, bool present = true) {
    return present ? *reinterpret_cast<const uint2*>(at) : make_uint2(0, 0);
}

template <typename T> __device__ __forceinline__ float4 load_four(const T* at) { return widen(four_of(at)); }
__device__ __forceinline__ void store_four(float* at, float4 x) { *reinterpret_cast<float4*>(at) = x; }
__device__ __forceinline__ void store_four(bf16* at, float4 x) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 operator*(float a, float4 b) {
    return make_float4(a * b.x, a * b.y, a * b.z, a * b.w);
}
__device__ __forceinline__ float sum_of(float4 x) { return (x.x + x.y) + (x.z + x.w); }

// Sums of two values over a block, the same in every thread, in an order that depends on the number of threads alone.
__device__ __forceinline__ float2 block_sums(float x, float y, float2* partial) {
    x = warp_sum(x);
    y = warp_sum(y);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[warp] = make_float2(x, y);
    __syncthreads();
    float2 sum = make_float2(0.0f, 0.0f);
    for (int i = 0; i < warps; ++i) sum.x += partial[i].x, sum.y += partial[i].y;
    return sum;
}

