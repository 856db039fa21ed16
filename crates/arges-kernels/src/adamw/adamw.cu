// AdamW, and the length of a gradient.

// As adamw/cpu.rs, whose scaled second moment this is: `widen` is the root of the scale. The four arrays begin equally far
// from a multiple of 16 bytes, so that all but the first and last values go in fours.
extern "C" __global__ void __launch_bounds__(256) adamw(
    float* values, const float* gradients, float* m, float* v, i64 count, float gradient_scale, float beta1,
    float rest1, float beta2, float rest2, float rate, float root, float eps, float decay, float widen) {
    auto update = [&](float& value, float slope, float& first, float& second) {
        float gradient = slope * gradient_scale, wide = gradient * widen;
        first = beta1 * first + rest1 * gradient;
        second = beta2 * second + rest2 * (wide * wide);
        value -= rate * first / (sqrtf(second) * root + eps) + decay * value;
    };
    i64 thread = i64(blockIdx.x) * 256 + threadIdx.x, threads = i64(gridDim.x) * 256;
    i64 before = (16 - i64(u64(values) % 16)) % 16 / 4;
    if (before > count) before = count;
    i64 fours = (count - before) / 4, behind = before + 4 * fours;
    if (thread < before) update(values[thread], gradients[thread], m[thread], v[thread]);
    if (thread < count - behind)
        update(values[behind + thread], gradients[behind + thread], m[behind + thread], v[behind + thread]);
    for (i64 i = thread; i < fours; i += threads) {
        float4 slope = reinterpret_cast<const float4*>(gradients + before)[i];
        float4* places[3] = {
            reinterpret_cast<float4*>(values + before) + i, reinterpret_cast<float4*>(m + before) + i,
            reinterpret_cast<float4*>(v + before) + i};
        float4 value = *places[0], first = *places[1], second = *places[2];
        update(value.x, slope.x, first.x, second.x);
        update(value.y, slope.y, first.y, second.y);
        update(value.z, slope.z, first.z, second.z);
        update(value.w, slope.w, first.w, second.w);
        *places[0] = value, *places[1] = first, *places[2] = second;
    }
}

__device__ __forceinline__ double block_sum(double x) {
    __shared__ double sums[256];
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// parts[b] = the sum of squares of values b * PIECE on, as many as there are up to PIECE.
extern "C" __global__ void __launch_bounds__(256) squares(const float* x, double* parts, i64 count) {
    i64 begin = i64(blockIdx.x) * PIECE, end = begin + PIECE < count ? begin + PIECE : count;
    double sum = 0.0;
    for (i64 i = begin + threadIdx.x; i < end; i += 256) sum += double(x[i]) * double(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// out = the sum of `count` values, in an order that depends on their number alone.
extern "C" __global__ void __launch_bounds__(256) total(const double* parts, double* out, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += 256) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}
