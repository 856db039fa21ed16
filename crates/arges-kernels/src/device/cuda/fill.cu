// Pseudo-random normal values, each a function of the seed and its place.

__device__ __forceinline__ u64 mixed(u64 x) {
    // The finalizer of SplitMix64.
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

template <typename T> __device__ __forceinline__ void fill(T* out, i64 count, u64 seed, float deviation) {
    i64 step = i64(gridDim.x) * blockDim.x;
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        u64 bits = mixed(seed ^ mixed(u64(i)));
        // Box and Muller's transform of two uniform numbers of 24 bits, the first above 0.
        float u = float((bits >> 40) + 1) * 0x1p-24f, v = float((bits >> 16) & 0xffffff) * 0x1p-24f;
        out[i] = from_float<T>(deviation * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
    }
}

extern "C" __global__ void fill_f32(float* out, i64 count, u64 seed, float deviation) {
    fill(out, count, seed, deviation);
}

extern "C" __global__ void fill_bf16(bf16* out, i64 count, u64 seed, float deviation) {
    fill(out, count, seed, deviation);
}
