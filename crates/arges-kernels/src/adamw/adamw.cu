// AdamW, and the length of a gradient.


// As adamw/cpu.rs, whose scaled second moment this is: `widen` is the root of the scale.
extern "C" __global__ void __launch_bounds__(256) adamw(
    float* values, const float* gradients, float* m, float* v, i64 count, float gradient_scale, float beta1,
    float rest1, float beta2, float rest2, float rate, float root, float eps, float decay, float widen) {
    i64 step = i64(gridDim.x) * 256;
    for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < count; i += step) {
        float gradient = gradients[i] * gradient_scale, wide = gradient * widen;
        float first = beta1 * m[i] + rest1 * gradient, second = beta2 * v[i] + rest2 * (wide * wide);
        m[i] = first;
        v[i] = second;
        float update = rate * first / (sqrtf(second) * root + eps);
        values[i] -= update + decay * values[i];
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
