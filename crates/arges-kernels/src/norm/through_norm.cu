// The last step back through a block of the model, through the norm of its input and past it.

// Sums of four values over a block, two rows at a time. `partial` is another one every time: then one barrier is
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

// What the gradient by normed rows is a sum of beside that: rows of a product, or of a token's rows that its choices have.
enum Branch { OF_PRODUCT, OF_CHOICES };

// Values of a row that a thread reads at once, as they lie in memory: 16 bytes, or 8.
template <int BYTES> struct Lying;
template <> struct Lying<16> { typedef uint4 Type; };
template <> struct Lying<8> { typedef uint2 Type; };
typedef typename Lying<VALUES * sizeof(A)>::Type Together;

struct Values {
    float at[VALUES];
};

__device__ __forceinline__ Values widen_all(Together lying) {
    Values x;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
#if ACTIVATIONS_BF16
        u32 pair = reinterpret_cast<const u32*>(&lying)[i / 2];
        x.at[i] = i % 2 ? high_float(pair) : low_float(pair);
#else
        x.at[i] = reinterpret_cast<const float*>(&lying)[i];
#endif
    }
    return x;
}

__device__ __forceinline__ Values load_all(const float* from) {
    Values x;
#pragma unroll
    for (int i = 0; i < VALUES; i += 4) {
        float4 four = four_of(from + i);
        x.at[i] = four.x, x.at[i + 1] = four.y, x.at[i + 2] = four.z, x.at[i + 3] = four.w;
    }
    return x;
}
#if ACTIVATIONS_BF16
__device__ __forceinline__ Values load_all(const A* from) {
    return widen_all(*reinterpret_cast<const Together*>(from));
}
#endif

__device__ __forceinline__ void store_all(float* to, const Values& x) {
#pragma unroll
    for (int i = 0; i < VALUES; i += 4)
        store_four(to + i, make_float4(x.at[i], x.at[i + 1], x.at[i + 2], x.at[i + 3]));
}
#if ACTIVATIONS_BF16
__device__ __forceinline__ Together round_all(const Values& x) {
    Together rounded;
#pragma unroll
    for (int i = 0; i < VALUES; i += 2)
        reinterpret_cast<u32*>(&rounded)[i / 2] = pack_bf16(x.at[i], x.at[i + 1]);
    return rounded;
}
__device__ __forceinline__ void store_all(A* to, const Values& x) { *reinterpret_cast<Together*>(to) = round_all(x); }
#endif

// sum += factor * x
__device__ __forceinline__ void add(Values& sum, float factor, const Values& x) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) sum.at[i] = fmaf(factor, x.at[i], sum.at[i]);
}

// Values as they are once they were stored.
__device__ __forceinline__ Values rounded(const Values& x) {
#if ACTIVATIONS_BF16
    return widen_all(round_all(x));
#else
    return x;
#endif
}

// Values of the stream as they were kept. Those in f32 are rounded as the others were, so that gradients do not depend
// on what was kept.
__device__ __forceinline__ Values load_stream(const float* x) { return rounded(load_all(x)); }

// The rest of that sum, where there is more: rows of `more`; of `exact`; of `count` rows of `small`, each times one of
// `factors`; of one more such row. Null pointers stand for none.
struct Rest {
    const A* more;
    const float *exact, *factors, *small;
    int count;
    const float *coefficients, *coefficient_weight;
};

// The experts whose output was the block's input, as `weigh` of moe/backward.cu knows them: `out` gets rows of the gradient
// by that, weighed for the token's choices, and `shared` that of a shared MLP. Null pointers stand for none.
struct Weighed {
    const int* places;
    const float *weights, *coefficients;
    A *out, *shared;
};

// Copies values to shared memory in the background: zeros where there are none, and nothing is read `anywhere`.
__device__ __forceinline__ void copy_values(Together* to, const A* from, const void* anywhere) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(from ? from : anywhere), "n"(sizeof(Together)), "r"(from ? int(sizeof(Together)) : 0));
}

// The last step back through a block of the model, whose input went through this norm. `dx` is the gradient by the
// block's output and becomes that by its input; `scaled` gets `beta` times that, the gradient by the output of what comes
// next. A block takes `part` rows, an even number, in twos; a thread has the same GROUPS groups of VALUES of each.
// With OUTER the gradient by `small` is summed as well, of SMALL rows: that by the weight and those follow one another
// in a part. With WEIGHS the gradient by what was the block's input, `scaled` if that is written, is weighed for experts.
template <typename X, int BRANCH, bool OUTER, bool WEIGHS>
__device__ __forceinline__ void through_norm(
    const X* x, const float* weight, float eps, int width, int rows, int part, A* dx, float alpha, int past,
    const A* branch, const int* places, const Rest& rest, float* parts, A* scaled, float beta, const Weighed& weighed) {
    constexpr int KEPT = OUTER ? SMALL : 1, BRANCHES = BRANCH == OF_CHOICES ? CHOICES : 1;
    constexpr bool EXACT = sizeof(X) != sizeof(A);
    enum Operand { KEPT_STREAM, PASSED, FIRST_BRANCH, OPERANDS = FIRST_BRANCH + BRANCHES };
    extern __shared__ __align__(16) unsigned char dynamic[];
    __shared__ float4 partial[2][THREADS / 32];
    auto slot = [&](int turn, int r, int group, int operand) {
        int place = ((turn * 2 + r) * GROUPS + group) * OPERANDS + operand;
        return reinterpret_cast<Together*>(dynamic) + place * THREADS + threadIdx.x;
    };
    auto column = [&](int group) { return VALUES * (threadIdx.x + group * THREADS); };
    Values dweight[GROUPS] = {}, dsmall[KEPT][GROUPS] = {};
    int begin = blockIdx.x * part, end = min(rows, begin + part);
    int place[2][BRANCHES] = {};
    wait_for_previous();
    let_next_start();
    auto ask_for_places = [&](int t) {
        if (BRANCH != OF_CHOICES) return;
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int choice = 0; choice < BRANCHES; ++choice)
                place[r][choice] = t + r < end ? places[(t + r) * BRANCHES + choice] : -1;
    };
    // Where an operand of row t + r lies, from column i on; null where there is none.
    auto lies = [&](int t, int r, int i, int operand) -> const A* {
        i64 at = i64(t + r) * width + i;
        if (t + r >= end || i >= width) return nullptr;
        // The stream in f32 is not copied.
        if (operand == KEPT_STREAM) return EXACT ? nullptr : reinterpret_cast<const A*>(x) + at;
        if (operand == PASSED) return past == NORMED ? dx + at : nullptr;
        if (BRANCH != OF_CHOICES) return branch + at;
        int of_choice = place[r][operand - FIRST_BRANCH];
        return of_choice >= 0 ? branch + i64(of_choice) * width + i : nullptr;
    };
    auto ask_for_rows = [&](int t, int turn) {
        if (!COPIES) return;
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
#pragma unroll
                for (int operand = EXACT ? PASSED : KEPT_STREAM; operand < OPERANDS; ++operand) {
                    if (operand == PASSED && past != NORMED) continue;
                    copy_values(slot(turn, r, group, operand), lies(t, r, column(group), operand), weight);
                }
        commit_copies();
    };
    // A thread reads what it has copied itself, a turn after it has asked for it; where that is, is known before.
    ask_for_places(begin);
    ask_for_rows(begin, 0);
    if (COPIES) ask_for_places(begin + 2);
    int turn = 0;
    for (int t = begin; t < end; t += 2, turn = 1 - turn) {
        bool both = t + 1 < end;
        Values dy[2][GROUPS], value[2][GROUPS];
        float factors[2][KEPT] = {};
        float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        ask_for_rows(t + 2, 1 - turn);
        if (COPIES) ask_for_places(t + 4);
        if constexpr (OUTER) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int which = 0; which < KEPT; ++which)
                    factors[r][which] = r == 0 || both ? rest.factors[(t + r) * KEPT + which] : 0.0f;
        }
        int chosen[2][CHOICES];
        float weights[2][CHOICES], of_shared[2] = {};
        if constexpr (WEIGHS) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                i64 row = min(t + r, end - 1);
                if (weighed.coefficients) of_shared[r] = sigmoid(weighed.coefficients[row]);
#pragma unroll
                for (int choice = 0; choice < CHOICES; ++choice) {
                    chosen[r][choice] = weighed.places[row * CHOICES + choice];
                    weights[r][choice] = weighed.weights[row * CHOICES + choice] * (1.0f - of_shared[r]);
                }
            }
        }
        if (COPIES) await_copies<1>();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                int i = column(group);
                i64 row = t + r, at = row * width + i;
                bool present = (r == 0 || both) && i < width;
                auto read = [&](int operand) {
                    if (COPIES) return widen_all(*slot(turn, r, group, operand));
                    const A* from = lies(t, r, i, operand);
                    return from ? load_all(from) : Values{};
                };
                Values& d = dy[r][group];
                d = {};
                value[r][group] = {};
                if (!EXACT) value[r][group] = read(KEPT_STREAM);
                else if (present) value[r][group] = load_stream(reinterpret_cast<const float*>(x) + at);
                if (past == NORMED) add(d, alpha, read(PASSED));
#pragma unroll
                for (int choice = 0; choice < BRANCHES; ++choice) add(d, 1.0f, read(FIRST_BRANCH + choice));
                if (!present) continue;
                if (rest.more) add(d, 1.0f, load_all(rest.more + at));
                if (rest.exact) add(d, 1.0f, load_all(rest.exact + at));
                if (!OUTER) {
                    for (int which = 0; which < rest.count; ++which)
                        add(d, rest.factors[row * rest.count + which], load_all(rest.small + i64(which) * width + i));
                }
                if (rest.coefficients) add(d, rest.coefficients[row], load_all(rest.coefficient_weight + i));
            }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            int i = column(group);
            if (i >= width) continue;
            if constexpr (OUTER) {
#pragma unroll
                for (int which = 0; which < KEPT; ++which) {
                    Values line = load_all(rest.small + which * width + i);
                    add(dy[0][group], factors[0][which], line);
                    add(dy[1][group], factors[1][which], line);
                }
            }
            Values w = load_all(weight + i);
#pragma unroll
            for (int j = 0; j < VALUES; ++j) {
                float x0 = value[0][group].at[j], x1 = value[1][group].at[j];
                sums.x = fmaf(x0, x0, sums.x), sums.z = fmaf(x1, x1, sums.z);
                sums.y = fmaf(dy[0][group].at[j] * w.at[j], x0, sums.y);
                sums.w = fmaf(dy[1][group].at[j] * w.at[j], x1, sums.w);
            }
        }
        if (!COPIES) ask_for_places(t + 2);
        sums = block_sums(sums, partial[turn]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (r == 1 && !both) break;
            float scale = rsqrtf((r ? sums.z : sums.x) / width + eps), along = r ? sums.w : sums.y;
            float mean = along / width * scale * scale;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                int i = column(group);
                if (i >= width) continue;
                i64 at = i64(t + r) * width + i;
                Values w = load_all(weight + i), d, normed;
#pragma unroll
                for (int j = 0; j < VALUES; ++j) {
                    float slope = dy[r][group].at[j], unit = scale * value[r][group].at[j];
                    d.at[j] = scale * fmaf(slope, w.at[j], -mean * value[r][group].at[j]);
                    normed.at[j] = unit * w.at[j];
                    dweight[group].at[j] = fmaf(slope, unit, dweight[group].at[j]);
                }
                if (past == STREAM) add(d, alpha, load_all(dx + at));
                store_all(dx + at, d);
                if (scaled) {
#pragma unroll
                    for (int j = 0; j < VALUES; ++j) d.at[j] *= beta;
                    store_all(scaled + at, d);
                }
                if constexpr (WEIGHS) {
                    d = rounded(d);
                    auto weigh = [&](A* to, float weight) {
                        Values x = {};
                        add(x, weight, d);
                        store_all(to + i, x);
                    };
#pragma unroll
                    for (int choice = 0; choice < CHOICES; ++choice)
                        if (chosen[r][choice] >= 0) weigh(weighed.out + i64(chosen[r][choice]) * width, weights[r][choice]);
                    if (weighed.shared) weigh(weighed.shared + i64(t + r) * width, of_shared[r]);
                }
                if constexpr (OUTER) {
#pragma unroll
                    for (int which = 0; which < KEPT; ++which) add(dsmall[which][group], factors[r][which], normed);
                }
            }
        }
    }
    parts += i64(blockIdx.x) * width * (OUTER ? 1 + SMALL : 1);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        int i = column(group);
        if (i >= width) continue;
        store_all(parts + i, dweight[group]);
        if constexpr (OUTER) {
#pragma unroll
            for (int which = 0; which < KEPT; ++which) store_all(parts + (1 + which) * width + i, dsmall[which][group]);
        }
    }
}

#define THROUGH_NORM(NAME, X, BRANCH, OUTER, WEIGHS)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, GROUPS == 1 ? 2 : 1) NAME(                                   \
        const X* x, const float* weight, float eps, int width, int rows, int part, A* dx, float alpha, int past,       \
        const A* branch, const int* places, const A* more, const float* exact, const float* factors,                   \
        const float* small, int count, const float* coefficients, const float* coefficient_weight, float* parts,       \
        A* scaled, float beta, const int* chosen, const float* weights, const float* shares, A* weighed,               \
        A* weighed_shared) {                                                                                           \
        Rest rest = {more, exact, factors, small, count, coefficients, coefficient_weight};                            \
        Weighed out = {chosen, weights, shares, weighed, weighed_shared};                                              \
        through_norm<X, BRANCH, OUTER, WEIGHS>(                                                                        \
            x, weight, eps, width, rows, part, dx, alpha, past, branch, places, rest, parts, scaled, beta, out);       \
    }

THROUGH_NORM(norm_backward, A, OF_PRODUCT, false, false)
THROUGH_NORM(norm_backward_weighing, A, OF_PRODUCT, false, true)
THROUGH_NORM(norm_backward_exact, float, OF_PRODUCT, false, false)
THROUGH_NORM(norm_backward_choices, A, OF_CHOICES, false, false)
THROUGH_NORM(norm_backward_choices_exact, float, OF_CHOICES, false, false)
#if SMALL > 0
THROUGH_NORM(norm_backward_outer, A, OF_CHOICES, true, false)
THROUGH_NORM(norm_backward_outer_exact, float, OF_CHOICES, true, false)
#endif

