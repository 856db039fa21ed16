// The residual stream and its norms, a block a row: what stands between two products is one kernel.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif
#if TABLE_BF16
typedef bf16 Table;
#else
typedef float Table;
#endif

// The sum over a block, the same in every thread. Its order depends on the number of threads alone.
__device__ __forceinline__ float block_sum(float x, float* partial) {
    x = warp_sum(x);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[warp] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < warps; ++i) sum += partial[i];
    return sum;
}

// 4 values of a row of activations.
__device__ __forceinline__ void store_four(float* at, float4 x) { *reinterpret_cast<float4*>(at) = x; }
__device__ __forceinline__ void store_four(bf16* at, float4 x) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

__device__ __forceinline__ float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ float4 load_four(const bf16* at) {
    uint2 pair = *reinterpret_cast<const uint2*>(at);
    return make_float4(low_float(pair.x), high_float(pair.x), low_float(pair.y), high_float(pair.y));
}

__device__ __forceinline__ float squares(float4 x) { return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x))); }

__device__ __forceinline__ float4 scaled(float4 x, float scale, float4 weight) {
    return make_float4(
        x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z, x.w * scale * weight.w);
}

// Four values of the stream where they are kept, rounded or not.
__device__ __forceinline__ void keep_four(void* kept, int exact, i64 at, float4 x) {
    if (!kept) return;
    if (exact) store_four(static_cast<float*>(kept) + at, x);
    else store_four(static_cast<A*>(kept) + at, x);
}

// Norms a row into `normed`, where that is not null, and rounded into `rounded`: the same bits wherever the row lies.
__device__ __forceinline__ void norm_row(
    const float* row, const float* weight, float eps, int width, float* normed, A* rounded, float* partial) {
    float sum = 0.0f;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) sum += squares(load_four(row + i));
    float scale = rsqrtf(block_sum(sum, partial) / width + eps);
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 y = scaled(load_four(row + i), scale, load_four(weight + i));
        if (normed) store_four(normed + i, y);
        store_four(rounded + i, y);
    }
}

// The norm of rows, in f32 where `normed` is not null, and rounded.
extern "C" __global__ void norm_rows(
    const float* x, const float* weight, float eps, int width, float* normed, A* rounded) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 at = i64(blockIdx.x) * width;
    norm_row(x + at, weight, eps, width, normed ? normed + at : normed, rounded + at, partial);
}

// x[t] = table[tokens[t]], and its norm.
extern "C" __global__ void embed(
    const int* tokens, const Table* table, float* x, const float* weight, float eps, int width, A* rounded,
    void* kept, int kept_exact) {
    extern __shared__ float row[];
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 t = blockIdx.x;
    const Table* from = table + i64(tokens[t]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 value = load_four(from + i);
        store_four(row + i, value);
        store_four(x + t * width + i, value);
        keep_four(kept, kept_exact, t * width + i, value);
    }
    norm_row(row, weight, eps, width, nullptr, rounded + t * width, partial);
}

// x = alpha * base + beta * branch and its norm; the base is the normed stream, or x itself where `base` is null. The
// branch is a row of `branch`, or the weighted sum of the rows of a token's experts (`choices` of them, at `places`), with
// a shared MLP mixed in where there is one: (1 - c) experts + c shared. Without `weight` there is no norm, and x is stored;
// with it, x is stored where it is a base. It goes into `kept` too, where that is not null.
extern "C" __global__ void join(
    float* x, const A* base, const A* branch, const int* places, const float* choice_weights, int choices,
    const A* shared, const float* coefficients, float alpha, float beta, const float* weight, float eps, int width,
    A* rounded, void* kept, int kept_exact) {
    extern __shared__ float row[];
    __shared__ float partial[32];
    if (weight) prefetch(weight, 4 * width);
    wait_for_previous();
    let_next_start();
    i64 t = blockIdx.x;
    float open = shared ? sigmoid(coefficients[t]) : 0.0f;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (choices == 0) {
            y = load_four(branch + t * width + i);
        }
        for (int choice = 0; choice < choices; ++choice) {
            int place = places[t * choices + choice];
            if (place < 0) continue;
            float w = choice_weights[t * choices + choice];
            float4 part = load_four(branch + i64(place) * width + i);
            y = make_float4(fmaf(w, part.x, y.x), fmaf(w, part.y, y.y), fmaf(w, part.z, y.z), fmaf(w, part.w, y.w));
        }
        if (shared) {
            float4 s = load_four(shared + t * width + i);
            y = make_float4(
                y.x + open * (s.x - y.x), y.y + open * (s.y - y.y), y.z + open * (s.z - y.z),
                y.w + open * (s.w - y.w));
        }
        float4 b = base ? load_four(base + t * width + i) : load_four(x + t * width + i);
        y = make_float4(
            fmaf(beta, y.x, alpha * b.x), fmaf(beta, y.y, alpha * b.y), fmaf(beta, y.z, alpha * b.z),
            fmaf(beta, y.w, alpha * b.w));
        if (weight) store_four(row + i, y);
        if (!base || !weight) store_four(x + t * width + i, y);
        keep_four(kept, kept_exact, t * width + i, y);
    }
    if (weight) norm_row(row, weight, eps, width, nullptr, rounded + t * width, partial);
}

// Values that a thread has of a row of a gated norm at most.
constexpr int HELD = 16;

// Four or eight values, as they are read and written at once.
template <int VALUES> struct Vector {
    float4 fours[VALUES / 4];

    __device__ __forceinline__ void load(const A* from) {
#if ACTIVATIONS_BF16
        if constexpr (VALUES == 8) {
            uint4 x = *reinterpret_cast<const uint4*>(from);
            fours[0] = make_float4(low_float(x.x), high_float(x.x), low_float(x.y), high_float(x.y));
            fours[1] = make_float4(low_float(x.z), high_float(x.z), low_float(x.w), high_float(x.w));
            return;
        }
#endif
#pragma unroll
        for (int i = 0; i < VALUES / 4; ++i) fours[i] = load_four(from + 4 * i);
    }

    __device__ __forceinline__ void store(A* to) const {
#if ACTIVATIONS_BF16
        if constexpr (VALUES == 8) {
            const float4 &a = fours[0], &b = fours[1];
            *reinterpret_cast<uint4*>(to) =
                make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
            return;
        }
#endif
#pragma unroll
        for (int i = 0; i < VALUES / 4; ++i) store_four(to + 4 * i, fours[i]);
    }
};

// A row of out = gate * norm(attended), where the gate has been through the sigmoid. Rows are read once, gates before the
// sum is there.
template <int VALUES>
__device__ __forceinline__ void gate_row(
    const A* attended, const A* gate, const float* weight, float eps, int width, A* out, float* partial) {
    constexpr int VECTORS = HELD / VALUES;
    Vector<VALUES> value[VECTORS], open[VECTORS];
    float sum = 0.0f;
    auto for_vectors = [&](auto body) {
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            int i = VALUES * (threadIdx.x + n * blockDim.x);
            if (i >= width) break;
            body(n, i);
        }
    };
    for_vectors([&](int n, int i) { value[n].load(attended + i), open[n].load(gate + i); });
    for_vectors([&](int n, int) {
#pragma unroll
        for (int j = 0; j < VALUES / 4; ++j) sum += squares(value[n].fours[j]);
    });
    float scale = rsqrtf(block_sum(sum, partial) / width + eps);
    for_vectors([&](int n, int i) {
#pragma unroll
        for (int j = 0; j < VALUES / 4; ++j) {
            float4 y = scaled(value[n].fours[j], scale, load_four(weight + i + 4 * j)), x = open[n].fours[j];
            value[n].fours[j] = make_float4(y.x * x.x, y.y * x.y, y.z * x.z, y.w * x.w);
        }
        value[n].store(out + i);
    });
}

// The same of narrow rows, a warp a row: nothing waits for other warps.
extern "C" __global__ void __launch_bounds__(256, 2) gated_norm_narrow(
    const A* attended, const A* gate, int gate_stride, const float* weight, float eps, int width, A* out, int rows) {
    constexpr int VECTORS = NARROW / (32 * 8);
    wait_for_previous();
    let_next_start();
    i64 t = i64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (t >= rows) return;
    attended += t * width, gate += t * gate_stride, out += t * width;
    Vector<8> value[VECTORS], open[VECTORS];
    auto for_vectors = [&](auto body) {
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            int i = 8 * (threadIdx.x % 32 + n * 32);
            if (i < width) body(n, i);
        }
    };
    for_vectors([&](int n, int i) { value[n].load(attended + i), open[n].load(gate + i); });
    float sum = 0.0f;
    for_vectors([&](int n, int) { sum += squares(value[n].fours[0]) + squares(value[n].fours[1]); });
    float scale = rsqrtf(warp_sum(sum) / width + eps);
    for_vectors([&](int n, int i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float4 y = scaled(value[n].fours[j], scale, load_four(weight + i + 4 * j)), x = open[n].fours[j];
            value[n].fours[j] = make_float4(y.x * x.x, y.y * x.y, y.z * x.z, y.w * x.w);
        }
        value[n].store(out + i);
    });
}

// With `wide`, rows begin at multiples of 16 bytes.
extern "C" __global__ void gated_norm(
    const A* attended, const A* gate, int gate_stride, const float* weight, float eps, int width, A* out, int wide) {
    __shared__ float partial[32];
    prefetch(weight, 4 * width);
    wait_for_previous();
    let_next_start();
    i64 t = blockIdx.x;
    attended += t * width, gate += t * gate_stride, out += t * width;
    if (wide) gate_row<8>(attended, gate, weight, eps, width, out, partial);
    else gate_row<4>(attended, gate, weight, eps, width, out, partial);
}

// The final norm of the rows that get logits, in f32; where `parts` is not null also split into bf16 parts that add up
// to it, row 8 g + i as rows 8 (PARTS g + part) + i.
extern "C" __global__ void head_rows(
    const float* x, const int* rows, const float* weight, float eps, int width, float* normed, bf16* parts) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 r = blockIdx.x;
    x += i64(rows[r]) * width;
    float sum = 0.0f;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) sum += squares(load_four(x + i));
    float scale = rsqrtf(block_sum(sum, partial) / width + eps);
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 y = scaled(load_four(x + i), scale, load_four(weight + i));
        store_four(normed + r * width + i, y);
        if (!parts) continue;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            uint2 pair = make_uint2(pack_bf16(y.x, y.y), pack_bf16(y.z, y.w));
            i64 line = r / 8 * 8 * PARTS + part * 8 + r % 8;
            *reinterpret_cast<uint2*>(parts + line * width + i) = pair;
            y = make_float4(
                y.x - low_float(pair.x), y.y - high_float(pair.x), y.z - low_float(pair.y),
                y.w - high_float(pair.y));
        }
    }
}
