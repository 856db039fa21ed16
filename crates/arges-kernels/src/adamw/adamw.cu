// AdamW, which writes a model's weights along with the values; values as weights without it; and the length of a gradient.

// Values from `begin` on, `count` of them, and the weights that they become: value begin + i - skipped is weight
// i + i / run * gap from `to` on, a bf16 one where it is rounded. Pieces of SPAN values are counted through all segments.
struct Segment {
    i64 begin, count, first_piece;
    u64 to;
    i64 skipped, run, gap, rounded;
};

// The segment of a piece: the last one that begins with it or before.
__device__ __forceinline__ Segment segment_of(const Segment* segments, int count, i64 piece) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (segments[middle].first_piece <= piece) low = middle;
        else high = middle - 1;
    }
    return segments[low];
}

__device__ __forceinline__ void write_four(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void write_four(bf16* to, float4 x) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

// Values [begin, end) of a segment as weights: in fours where values and weights begin at multiples of 4.
template <typename W, typename Values>
__device__ __forceinline__ void write_weights(const Segment& segment, i64 begin, i64 end, Values values) {
    i64 first = begin - segment.begin + segment.skipped, runs = segment.gap ? first / segment.run : 0;
    W* weights = reinterpret_cast<W*>(segment.to) + first;
    u32 run = u32(segment.run), behind = u32(first - runs * segment.run);
    auto place = [&](i64 value) {
        i64 i = value - begin;
        return weights + i + (segment.gap ? (runs + (behind + u32(i)) / run) * segment.gap : 0);
    };
    bool whole_runs = segment.gap == 0 || (segment.run % 4 == 0 && segment.gap % 4 == 0);
    i64 rest = begin;
    if (begin % 4 == 0 && first % 4 == 0 && segment.to % (4 * sizeof(W)) == 0 && whole_runs) {
        rest = end - end % 4;
#pragma unroll 1
        for (i64 i = begin + 4 * threadIdx.x; i < rest; i += 4 * 256) write_four(place(i), values.four(i));
    }
#pragma unroll 1
    for (i64 i = rest + threadIdx.x; i < end; i += 256) *place(i) = from_float<W>(values.one(i));
}

// A block takes one piece, from that of the first segment on.
template <typename Values>
__device__ __forceinline__ void write_piece(const Segment* segments, int count, Values values) {
    i64 piece = segments->first_piece + blockIdx.x;
    Segment segment = segment_of(segments, count, piece);
    i64 from = segment.begin + (piece - segment.first_piece) * SPAN;
    i64 to = min(from + SPAN, segment.begin + segment.count);
    if (segment.rounded) write_weights<bf16>(segment, from, to, values);
    else write_weights<float>(segment, from, to, values);
}

// As adamw/cpu.rs, whose scaled second moment this is: `widen` is the root of the scale.
struct Step {
    float gradient_scale, beta1, rest1, beta2, rest2, rate, root, eps, decay, widen;
};

struct Learned {
    float* values;
    const float* gradients;
    float *m, *v;
    Step step;

    // Contracted by hand, so that a value's bits do not depend on whether it is one of four.
    __device__ __forceinline__ void update(float& value, float slope, float& first, float& second) const {
        float gradient = slope * step.gradient_scale, wide = gradient * step.widen;
        first = fmaf(step.rest1, gradient, step.beta1 * first);
        second = fmaf(step.beta2, second, step.rest2 * (wide * wide));
        value -= fmaf(step.decay, value, step.rate * first / fmaf(sqrtf(second), step.root, step.eps));
    }

    __device__ __forceinline__ float one(i64 i) const {
        float value = values[i], first = m[i], second = v[i];
        update(value, gradients[i], first, second);
        values[i] = value, m[i] = first, v[i] = second;
        return value;
    }

    __device__ __forceinline__ float4 four(i64 i) const {
        float4 slope = *reinterpret_cast<const float4*>(gradients + i);
        float4* places[3] = {
            reinterpret_cast<float4*>(values + i), reinterpret_cast<float4*>(m + i), reinterpret_cast<float4*>(v + i)};
        float4 value = *places[0], first = *places[1], second = *places[2];
        update(value.x, slope.x, first.x, second.x);
        update(value.y, slope.y, first.y, second.y);
        update(value.z, slope.z, first.z, second.z);
        update(value.w, slope.w, first.w, second.w);
        *places[0] = value, *places[1] = first, *places[2] = second;
        return value;
    }
};

extern "C" __global__ void __launch_bounds__(256) adamw(
    const Segment* segments, int count, float* values, const float* gradients, float* m, float* v,
    float gradient_scale, float beta1, float rest1, float beta2, float rest2, float rate, float root, float eps,
    float decay, float widen) {
    Step step = {gradient_scale, beta1, rest1, beta2, rest2, rate, root, eps, decay, widen};
    write_piece(segments, count, Learned{values, gradients, m, v, step});
}

struct Unchanged {
    const float* values;

    __device__ __forceinline__ float one(i64 i) const { return values[i]; }
    __device__ __forceinline__ float4 four(i64 i) const { return *reinterpret_cast<const float4*>(values + i); }
};

extern "C" __global__ void __launch_bounds__(256) pack(
    const Segment* segments, int count, const float* values) {
    write_piece(segments, count, Unchanged{values});
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

// parts[p] = the sum of squares of the values of piece p.
extern "C" __global__ void __launch_bounds__(256) squares(
    const Segment* segments, int count, const float* x, double* parts) {
    Segment segment = segment_of(segments, count, blockIdx.x);
    i64 begin = segment.begin + (blockIdx.x - segment.first_piece) * SPAN;
    i64 end = min(begin + SPAN, segment.begin + segment.count);
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
