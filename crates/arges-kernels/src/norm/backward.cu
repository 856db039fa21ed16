// Gradients of norms. With r = 1 / sqrt(mean(x^2) + eps) and u the gradient by x r weight:
// dx = r (u weight - x r^2 mean(u weight x)), and dweight is the sum over rows of u x r. A block takes some rows one after
// the other and leaves its part of dweight; the parts are added in order.

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

// The same of two rows at a time, in the norm of the stream. `partial` is another one every time: then one barrier is
// enough.
__device__ __forceinline__ float4 block_sums(float4 x, float4* partial) {
    x = make_float4(warp_sum(x.x), warp_sum(x.y), warp_sum(x.z), warp_sum(x.w));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < THREADS / 32; ++i) sum = sum + partial[i];
    return sum;
}

// What goes past a block of the model, times alpha: its input, the normed input, or nothing.
enum Past { STREAM, NORMED, NOTHING };

// The gradient by normed rows is a sum: of rows of `product`; of a token's rows among `choice_rows`, in the order of its
// choices; of `more`; of `exact`; of `count` rows of `small`, each times one of `factors`; of one more such row. Null
// pointers stand for none.
struct Gradient {
    const A *product, *choice_rows;
    const int* places;
    const A* more;
    const float *exact, *factors, *small;
    int count;
    const float *coefficients, *coefficient_weight;
};

// Values of the stream as they were kept. Those in f32 are rounded as the others were, so that gradients do not depend
// on what was kept.
template <typename T> __device__ __forceinline__ float4 of_stream(T x) { return widen(x); }
#if ACTIVATIONS_BF16
template <> __device__ __forceinline__ float4 of_stream(float4 x) {
    return widen(make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w)));
}
#endif

// Where a row's choices are.
struct RowPlaces {
    int of_choice[CHOICES];

    __device__ __forceinline__ void load(const Gradient& from, i64 row, bool present) {
#pragma unroll
        for (int choice = 0; choice < CHOICES; ++choice)
            of_choice[choice] = present && from.choice_rows ? from.places[row * CHOICES + choice] : -1;
    }
};

// What is read of a row, four values a thread: the stream and what the gradient by it is a sum of. The rest of that sum is
// seldom there.
enum Operand { KEPT_STREAM, PASSED, PRODUCT, CHOSEN, OPERANDS = CHOSEN + CHOICES };

typedef decltype(four_of(static_cast<const A*>(nullptr))) Four;

// Where an operand of a row lies, from value i on; null where there is none.
__device__ __forceinline__ const A* operand_at(
    int operand, const A* x, const A* dx, bool passes, const Gradient& from, const RowPlaces& places, i64 row, int i,
    int width) {
    i64 at = row * width + i;
    if (operand == KEPT_STREAM) return x ? x + at : nullptr;
    if (operand == PASSED) return passes ? dx + at : nullptr;
    if (operand == PRODUCT) return from.product ? from.product + at : nullptr;
    int place = places.of_choice[operand - CHOSEN];
    return place >= 0 ? from.choice_rows + i64(place) * width + i : nullptr;
}

// Copies four values to shared memory in the background: zeros where there are none.
__device__ __forceinline__ void copy_four(Four* to, const A* from, const void* anywhere) {
    const void* global = from ? from : anywhere;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(global),
                 "n"(sizeof(Four)), "r"(from ? int(sizeof(Four)) : 0));
}

// Whether rows are copied ahead of their use: where two times two of them fit.
constexpr bool COPIES = OPERANDS * 4 * GROUPS * THREADS * sizeof(Four) <= COPY_BYTES;

// The last step back through a block of the model, whose input went through this norm. `dx` is the gradient by the
// block's output and becomes that by its input; `scaled` gets `beta` times that, the gradient by the output of what comes
// next. A block takes `part` rows, an even number, in twos; a thread has the same GROUPS groups of four values of each.
// With OUTER the gradient by `small` is summed as well, of SMALL rows: that by the weight and those follow one another
// in a part.
template <typename X, bool OUTER>
__device__ __forceinline__ void through_norm(
    const X* x, const float* weight, float eps, int width, int rows, int part, A* dx, float alpha, int past,
    const Gradient& from, float* parts, A* scaled, float beta) {
    constexpr int KEPT = OUTER ? SMALL : 1;
    __shared__ float4 partial[2][32];
    float4 dweight[GROUPS] = {}, dsmall[KEPT][GROUPS] = {};
    wait_for_previous();
    let_next_start();
    int begin = blockIdx.x * part, end = min(rows, begin + part);
    // The first copy of a row in f32 would have other slots.
    constexpr bool AHEAD = COPIES && sizeof(X) == sizeof(A);
    extern __shared__ __align__(16) unsigned char dynamic[];
    auto slot = [&](int t, int r, int group, int operand) {
        int place = (((t - begin) / 2 % 2 * 2 + r) * GROUPS + group) * OPERANDS + operand;
        return reinterpret_cast<Four*>(dynamic) + place * THREADS + threadIdx.x;
    };
    RowPlaces places[2];
    auto ask_for_places = [&](int t) {
#pragma unroll
        for (int r = 0; r < 2; ++r) places[r].load(from, t + r, t + r < end);
    };
    // Calls `body` with the place of every operand of rows t and t + 1.
    auto for_operands = [&](int t, auto body) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                int i = 4 * (threadIdx.x + group * THREADS);
                bool present = t + r < end && i < width;
#pragma unroll
                for (int operand = AHEAD ? KEPT_STREAM : PASSED; operand < OPERANDS; ++operand) {
                    const A* stream = AHEAD ? reinterpret_cast<const A*>(x) : nullptr;
                    const A* at = operand_at(operand, stream, dx, past == NORMED, from, places[r], t + r, i, width);
                    body(r, group, operand, present ? at : nullptr);
                }
            }
        }
    };
    auto copy_rows = [&](int t) {
        for_operands(t, [&](int r, int group, int operand, const A* at) {
            copy_four(slot(t, r, group, operand), at, x);
        });
        commit_copies();
    };
    // A thread reads what it has copied itself, two rows after it has asked for them; where they are is known before.
    ask_for_places(begin);
    if constexpr (AHEAD) {
        copy_rows(begin);
        ask_for_places(begin + 2);
    }
    for (int t = begin; t < end; t += 2) {
        float4 dy[2][GROUPS] = {}, value[2][GROUPS] = {};
        float factors[2][KEPT] = {};
        float sums[4] = {};
        bool both = t + 1 < end;
        Four read[2][GROUPS][OPERANDS];
        if constexpr (AHEAD) {
            copy_rows(t + 2);
            ask_for_places(t + 4);
            await_copies<1>();
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int group = 0; group < GROUPS; ++group)
#pragma unroll
                    for (int operand = 0; operand < OPERANDS; ++operand)
                        read[r][group][operand] = *slot(t, r, group, operand);
        } else {
            for_operands(t, [&](int r, int group, int operand, const A* at) {
                read[r][group][operand] = four_of(at, at);
            });
            ask_for_places(t + 2);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                int i = 4 * (threadIdx.x + group * THREADS);
                const Four* values = read[r][group];
                if constexpr (AHEAD) value[r][group] = widen(values[KEPT_STREAM]);
                else value[r][group] = of_stream(four_of(x + i64(t + r) * width + i, t + r < end && i < width));
                dy[r][group] = alpha * widen(values[PASSED]) + widen(values[PRODUCT]);
#pragma unroll
                for (int choice = 0; choice < CHOICES; ++choice)
                    dy[r][group] = dy[r][group] + widen(values[CHOSEN + choice]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (r == 1 && !both) break;
            i64 row = t + r;
            if (from.more || from.exact || from.coefficients) {
#pragma unroll
                for (int group = 0; group < GROUPS; ++group) {
                    int i = 4 * (threadIdx.x + group * THREADS);
                    if (i >= width) continue;
                    float4& d = dy[r][group];
                    if (from.more) d = d + load_four(from.more + row * width + i);
                    if (from.exact) d = d + load_four(from.exact + row * width + i);
                    if (from.coefficients) d = d + from.coefficients[row] * load_four(from.coefficient_weight + i);
                }
            }
            if constexpr (OUTER) {
#pragma unroll
                for (int which = 0; which < KEPT; ++which) factors[r][which] = from.factors[row * SMALL + which];
            }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            int i = 4 * (threadIdx.x + group * THREADS);
            if (i >= width) continue;
            if constexpr (OUTER) {
#pragma unroll
                for (int which = 0; which < KEPT; ++which) {
                    float4 line = load_four(from.small + which * width + i);
#pragma unroll
                    for (int r = 0; r < 2; ++r) dy[r][group] = dy[r][group] + factors[r][which] * line;
                }
            } else {
                for (int which = 0; which < from.count; ++which) {
                    float4 line = load_four(from.small + i64(which) * width + i);
                    const float* factor = from.factors + i64(t) * from.count + which;
                    dy[0][group] = dy[0][group] + factor[0] * line;
                    if (both) dy[1][group] = dy[1][group] + factor[from.count] * line;
                }
            }
            float4 w = load_four(weight + i);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                sums[2 * r] += sum_of(value[r][group] * value[r][group]);
                sums[2 * r + 1] += sum_of(dy[r][group] * w * value[r][group]);
            }
        }
        float4 total =
            block_sums(make_float4(sums[0], sums[1], sums[2], sums[3]), partial[(t - begin) / 2 % 2]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (r == 1 && !both) break;
            float squares = r ? total.z : total.x, along = r ? total.w : total.y;
            float scale = rsqrtf(squares / width + eps), mean = along / width * scale * scale;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                int i = 4 * (threadIdx.x + group * THREADS);
                if (i >= width) continue;
                i64 at = i64(t + r) * width + i;
                float4 w = load_four(weight + i), unit = scale * value[r][group], normed = unit * w;
                float4 d = scale * (dy[r][group] * w + (-mean) * value[r][group]);
                if (past == STREAM) d = alpha * load_four(dx + at) + d;
                store_four(dx + at, d);
                if (scaled) store_four(scaled + at, beta * d);
                dweight[group] = dweight[group] + dy[r][group] * unit;
                if constexpr (OUTER) {
#pragma unroll
                    for (int which = 0; which < KEPT; ++which)
                        dsmall[which][group] = dsmall[which][group] + factors[r][which] * normed;
                }
            }
        }
    }
    parts += i64(blockIdx.x) * width * (OUTER ? 1 + SMALL : 1);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        int i = 4 * (threadIdx.x + group * THREADS);
        if (i >= width) continue;
        store_four(parts + i, dweight[group]);
        if constexpr (OUTER) {
#pragma unroll
            for (int which = 0; which < KEPT; ++which) store_four(parts + (1 + which) * width + i, dsmall[which][group]);
        }
    }
}

#define THROUGH_NORM(NAME, X, OUTER)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, GROUPS == 1 && CHOICES <= 2 ? 2 : 1) NAME(                   \
        const X* x, const float* weight, float eps, int width, int rows, int part, A* dx, float alpha, int past,       \
        const A* product, const A* choice_rows, const int* places, const A* more, const float* exact,                  \
        const float* factors, const float* small, int count, const float* coefficients,                                \
        const float* coefficient_weight, float* parts, A* scaled, float beta) {                                        \
        Gradient from = {product, choice_rows, places, more,         exact,                                            \
                         factors, small,       count,  coefficients, coefficient_weight};                              \
        through_norm<X, OUTER>(                                                                                        \
            x, weight, eps, width, rows, part, dx, alpha, past, from, parts, scaled, beta);                            \
    }

THROUGH_NORM(norm_backward, A, false)
THROUGH_NORM(norm_backward_exact, float, false)
#if SMALL > 0
THROUGH_NORM(norm_backward_outer, A, true)
THROUGH_NORM(norm_backward_outer_exact, float, true)
#endif

// Through out = gate * norm(x), where the gate has been through the sigmoid: writes the gradient by x and that by the
// gate before the sigmoid.
extern "C" __global__ void gated_norm_backward(
    const A* x, const A* gate, int gate_stride, const float* weight, float eps, int width, int rows, const A* dy,
    A* dx, A* dgate, float* parts) {
    extern __shared__ float dweight[];
    __shared__ float2 partial[32];
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < width; i += blockDim.x) dweight[i] = 0.0f;
    __syncthreads();
    int end = min(rows, (int(blockIdx.x) + 1) * ROWS);
    for (i64 t = blockIdx.x * ROWS; t < end; ++t) {
        float squares = 0.0f, along = 0.0f;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            float4 value = load_four(x + t * width + i), open = load_four(gate + t * gate_stride + i);
            squares += sum_of(value * value);
            along += sum_of(load_four(dy + t * width + i) * open * load_four(weight + i) * value);
        }
        float2 sums = block_sums(squares, along, partial);
        float scale = rsqrtf(sums.x / width + eps), mean = sums.y / width * scale * scale;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            float4 value = load_four(x + t * width + i), open = load_four(gate + t * gate_stride + i);
            float4 d = load_four(dy + t * width + i), u = d * open, w = load_four(weight + i);
            float4 shut = make_float4(1.0f - open.x, 1.0f - open.y, 1.0f - open.z, 1.0f - open.w);
            store_four(dgate + t * gate_stride + i, u * shut * (scale * value * w));
            store_four(dx + t * width + i, scale * (u * w + (-mean) * value));
            store_four(dweight + i, load_four(dweight + i) + scale * u * value);
        }
    }
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(parts + i64(blockIdx.x) * width + i, load_four(dweight + i));
}

// out[i] += the sum of parts[p, i] over p, where parts are `stride` values apart. Blocks of 32 columns by 8 lines; line l
// adds up parts l, l + 8, ...
extern "C" __global__ void __launch_bounds__(256) add_rows(
    const float* parts, int stride, float* out, int count, int width) {
    __shared__ float sums[8][32];
    wait_for_previous();
    let_next_start();
    int column = threadIdx.x % 32, line = threadIdx.x / 32, i = blockIdx.x * 32 + column;
    float sum = 0.0f;
    if (i < width)
        for (int p = line; p < count; p += 8) sum += parts[i64(p) * stride + i];
    sums[line][column] = sum;
    __syncthreads();
    if (line > 0 || i >= width) return;
    for (int l = 1; l < 8; ++l) sum += sums[l][column];
    out[i] += sum;
}

// out = factor * x, rounded, four values a thread.
extern "C" __global__ void __launch_bounds__(256) scaled(const A* x, float factor, A* out, i64 count) {
    wait_for_previous();
    let_next_start();
    i64 i = 4 * (i64(blockIdx.x) * 256 + threadIdx.x);
    if (i < count) store_four(out + i, factor * load_four(x + i));
}

// out[r] = x[rows[r]], and the other way round.
extern "C" __global__ void gather_rows(const float* x, const int* rows, float* out, int width) {
    wait_for_previous();
    let_next_start();
    const float* from = x + i64(rows[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(out + i64(blockIdx.x) * width + i, load_four(from + i));
}

extern "C" __global__ void scatter_rows(const A* x, const int* rows, A* out, int width) {
    wait_for_previous();
    let_next_start();
    A* to = out + i64(rows[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(to + i, load_four(x + i64(blockIdx.x) * width + i));
}

// table[tokens[b]] += the sum of the rows of dx that order[begins[b]..begins[b + 1]] names: the rows of one token, in
// ascending order.
extern "C" __global__ void embedding_backward(
    const A* dx, const int* tokens, const int* begins, const int* order, float* table, int width) {
    wait_for_previous();
    let_next_start();
    int begin = begins[blockIdx.x], end = begins[blockIdx.x + 1];
    float* to = table + i64(tokens[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 sum = load_four(to + i);
        for (int j = begin; j < end; ++j) sum = sum + load_four(dx + i64(order[j]) * width + i);
        store_four(to + i, sum);
    }
}
