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

// Four or eight values, as they are read and written at once.
template <int COUNT> struct Vector {
    float4 fours[COUNT / 4];

    __device__ __forceinline__ void load(const A* from) {
#if ACTIVATIONS_BF16
        if constexpr (COUNT == 8) {
            uint4 x = *reinterpret_cast<const uint4*>(from);
            fours[0] = make_float4(low_float(x.x), high_float(x.x), low_float(x.y), high_float(x.y));
            fours[1] = make_float4(low_float(x.z), high_float(x.z), low_float(x.w), high_float(x.w));
            return;
        }
#endif
        load_exact(from);
    }

    template <typename T> __device__ __forceinline__ void load_exact(const T* from) {
#pragma unroll
        for (int i = 0; i < COUNT / 4; ++i) fours[i] = load_four(from + 4 * i);
    }

    __device__ __forceinline__ void store(A* to) const {
#if ACTIVATIONS_BF16
        if constexpr (COUNT == 8) {
            const float4 &a = fours[0], &b = fours[1];
            *reinterpret_cast<uint4*>(to) =
                make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
            return;
        }
#endif
        store_exact(to);
    }

    template <typename T> __device__ __forceinline__ void store_exact(T* to) const {
#pragma unroll
        for (int i = 0; i < COUNT / 4; ++i) store_four(to + 4 * i, fours[i]);
    }
};

// The same as they lie in memory: reads that are under way need fewer registers so.
template <int COUNT> struct Lying {
    A values[COUNT];

    __device__ __forceinline__ void load(const A* from) {
        if constexpr (sizeof(values) == 16) *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(from);
        else *reinterpret_cast<uint2*>(values) = *reinterpret_cast<const uint2*>(from);
    }

    __device__ __forceinline__ float4 four(int i) const { return load_four(values + 4 * i); }
};

// A row in the order in which its norm sums it: a thread has GROUPS groups of VALUES.
typedef Vector<VALUES> Row[GROUPS];

template <typename Body> __device__ __forceinline__ void for_groups(int width, Body body) {
#pragma unroll
    for (int n = 0; n < GROUPS; ++n) {
        int i = VALUES * (threadIdx.x + n * blockDim.x);
        if (i < width) body(n, i);
    }
}

// Stores a row of the stream where it is kept, rounded or not.
__device__ __forceinline__ void keep_row(void* kept, int exact, i64 row, int width, const Row& y) {
    if (!kept) return;
    for_groups(width, [&](int n, int i) {
        if (exact) y[n].store_exact(static_cast<float*>(kept) + row + i);
        else y[n].store(static_cast<A*>(kept) + row + i);
    });
}

// Norms a row into `normed`, where that is not null, and rounded into `rounded`: the same bits wherever it comes from.
__device__ __forceinline__ void norm_row(
    Row& y, const float* weight, float eps, int width, float* normed, A* rounded, float* partial) {
    float sum = 0.0f;
    for_groups(width, [&](int n, int) {
#pragma unroll
        for (int k = 0; k < VALUES / 4; ++k) sum += squares(y[n].fours[k]);
    });
    float scale = rsqrtf(block_sum(sum, partial) / width + eps);
    for_groups(width, [&](int n, int i) {
#pragma unroll
        for (int k = 0; k < VALUES / 4; ++k) y[n].fours[k] = scaled(y[n].fours[k], scale, load_four(weight + i + 4 * k));
        if (normed) y[n].store_exact(normed + i);
        y[n].store(rounded + i);
    });
}

// The norm of rows, in f32 where `normed` is not null, and rounded.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) norm_rows(
    const float* x, const float* weight, float eps, int width, float* normed, A* rounded) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 row = i64(blockIdx.x) * width;
    Row y;
    for_groups(width, [&](int n, int i) { y[n].load_exact(x + row + i); });
    norm_row(y, weight, eps, width, normed ? normed + row : normed, rounded + row, partial);
}

// x[t] = table[tokens[t]], and its norm.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) embed(
    const int* tokens, const Table* table, float* x, const float* weight, float eps, int width, A* rounded,
    void* kept, int kept_exact) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 row = i64(blockIdx.x) * width;
    const Table* from = table + i64(tokens[blockIdx.x]) * width;
    Row y;
    for_groups(width, [&](int n, int i) {
        y[n].load_exact(from + i);
        y[n].store_exact(x + row + i);
    });
    keep_row(kept, kept_exact, row, width, y);
    norm_row(y, weight, eps, width, nullptr, rounded + row, partial);
}

// x = alpha * base + beta * branch and its norm; the base is the normed stream, or x itself where `base` is null. The
// branch is a row of `branch`, or the weighted sum of the rows of a token's experts (`choices` of them, at `places`), with
// a shared MLP mixed in where there is one: (1 - c) experts + c shared. Without `weight` there is no norm, and x is stored;
// with it, x is stored where it is a base. It goes into `kept` too, where that is not null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) join(
    float* x, const A* base, const A* branch, const int* places, const float* choice_weights, int choices,
    const A* shared, const float* coefficients, float alpha, float beta, const float* weight, float eps, int width,
    A* rounded, void* kept, int kept_exact) {
    __shared__ float partial[32];
    if (weight) prefetch(weight, 4 * width);
    wait_for_previous();
    let_next_start();
    i64 t = blockIdx.x, row = t * width;
    Row y;
    Lying<VALUES> of_base[GROUPS];
    if (base) for_groups(width, [&](int n, int i) { of_base[n].load(base + row + i); });
    if (choices == 0) for_groups(width, [&](int n, int i) { y[n].load(branch + row + i); });
    else for_groups(width, [&](int n, int) { y[n] = {}; });
    // The rows of two choices are under way together.
    for (int first = 0; first < choices; first += 2) {
        int place[2];
        float w[2];
        Lying<VALUES> chosen[2][GROUPS];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            i64 at = t * choices + first + c;
            place[c] = first + c < choices ? places[at] : -1;
            w[c] = first + c < choices ? choice_weights[at] : 0.0f;
        }
#pragma unroll
        for (int c = 0; c < 2; ++c)
            if (place[c] >= 0) for_groups(width, [&](int n, int i) { chosen[c][n].load(branch + i64(place[c]) * width + i); });
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (place[c] < 0) continue;
            for_groups(width, [&](int n, int) {
#pragma unroll
                for (int k = 0; k < VALUES / 4; ++k) {
                    float4 &to = y[n].fours[k], part = chosen[c][n].four(k);
                    to = make_float4(
                        fmaf(w[c], part.x, to.x), fmaf(w[c], part.y, to.y), fmaf(w[c], part.z, to.z),
                        fmaf(w[c], part.w, to.w));
                }
            });
        }
    }
    if (shared) {
        float open = sigmoid(coefficients[t]);
        for_groups(width, [&](int n, int i) {
            Vector<VALUES> of_shared;
            of_shared.load(shared + row + i);
#pragma unroll
            for (int k = 0; k < VALUES / 4; ++k) {
                float4 &to = y[n].fours[k], s = of_shared.fours[k];
                to = make_float4(
                    to.x + open * (s.x - to.x), to.y + open * (s.y - to.y), to.z + open * (s.z - to.z),
                    to.w + open * (s.w - to.w));
            }
        });
    }
    for_groups(width, [&](int n, int i) {
        Vector<VALUES> b;
        if (!base) b.load_exact(x + row + i);
#pragma unroll
        for (int k = 0; k < VALUES / 4; ++k) {
            float4 &to = y[n].fours[k], from = base ? of_base[n].four(k) : b.fours[k];
            to = make_float4(
                fmaf(beta, to.x, alpha * from.x), fmaf(beta, to.y, alpha * from.y), fmaf(beta, to.z, alpha * from.z),
                fmaf(beta, to.w, alpha * from.w));
        }
        if (!base || !weight) y[n].store_exact(x + row + i);
    });
    keep_row(kept, kept_exact, row, width, y);
    if (weight) norm_row(y, weight, eps, width, nullptr, rounded + row, partial);
}

// Values that a thread has of a row of a gated norm at most.
constexpr int HELD = 16;

// A row of out = gate * norm(attended), where the gate has been through the sigmoid. Rows are read once, gates before the
// sum is there.
template <int COUNT>
__device__ __forceinline__ void gate_row(
    const A* attended, const A* gate, const float* weight, float eps, int width, A* out, float* partial) {
    constexpr int VECTORS = HELD / COUNT;
    Vector<COUNT> value[VECTORS], open[VECTORS];
    float sum = 0.0f;
    auto for_vectors = [&](auto body) {
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            int i = COUNT * (threadIdx.x + n * blockDim.x);
            if (i >= width) break;
            body(n, i);
        }
    };
    for_vectors([&](int n, int i) { value[n].load(attended + i), open[n].load(gate + i); });
    for_vectors([&](int n, int) {
#pragma unroll
        for (int j = 0; j < COUNT / 4; ++j) sum += squares(value[n].fours[j]);
    });
    float scale = rsqrtf(block_sum(sum, partial) / width + eps);
    for_vectors([&](int n, int i) {
#pragma unroll
        for (int j = 0; j < COUNT / 4; ++j) {
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
