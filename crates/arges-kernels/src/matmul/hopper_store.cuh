// What becomes of the products of a tile, from an accumulator's registers to memory. Unrolled stores are most of what the
// compiler has to do: those with turned weights are gradients, which are rounded or f32, and those for experts alone are
// rounded or gated (FOR_EXPERTS).

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

enum Epilogue { STORE_F32, STORE_BF16, STORE_ACTIVATED, STORE_GATED, STORE_PARTS };

// Where the results of a product go, and as what.
struct Target {
    void* out;
    // Where the product itself goes as well, rounded, rows of all outputs; or null.
    bf16* before;
    int stride, epilogue, activated, outputs, row_limit;
};

// As with __expf, but for powers that are no normal numbers and nothing beside 1.
__device__ __forceinline__ float fast_sigmoid(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    return __fdividef(1.0f, 1.0f + power);
}

// Turns 8 by 8 values of 16 bits that lie across a warp: a lane has two neighbours of row lane / 4, and then of column
// lane / 4.
__device__ __forceinline__ u32 turned(u32 pair) {
    u32 out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// Writes outputs `n` to n + 15 of rows of `stride`, of which a lane has two and, 8 behind, two more, in row lane / 4:
// those that lie together go in one store. `line` is that row, or null where there is none.
__device__ __forceinline__ void write_sixteen(bf16* line, u32 low, u32 high, int n, int outputs, bool whole) {
    bool odd = threadIdx.x & 1;
    u32 other = __shfl_xor_sync(~0u, odd ? low : high, 1);
    if (!line) return;
    u32 first = odd ? other : low, second = odd ? high : other;
    int at = n + (odd ? 8 : 0) + threadIdx.x % 4 / 2 * 4;
    if (whole && at + 4 <= outputs) {
        *reinterpret_cast<uint2*>(line + at) = make_uint2(first, second);
        return;
    }
    u16* to = reinterpret_cast<u16*>(line);
#pragma unroll 1
    for (int i = 0; i < 4; ++i)
        if (at + i < outputs) to[at + i] = u16((i < 2 ? first : second) >> 16 * (i % 2));
}

// A warp's 16 outputs for 8 rows, as they lie in an accumulator.
__device__ __forceinline__ void store_sixteen(const float (&x)[4], bf16* line, int n, int outputs, bool whole) {
    write_sixteen(line, turned(pack_bf16(x[0], x[1])), turned(pack_bf16(x[2], x[3])), n, outputs, whole);
}

// What becomes of a value of output `n`.
template <int EPILOGUE> __device__ __forceinline__ float activate(float x, int n, const Target& target) {
    return EPILOGUE == STORE_ACTIVATED ? (n < target.activated ? x : 1.0f) * fast_sigmoid(x) : x;
}

// Two gates, then the two ups that belong to them.
__device__ __forceinline__ u32 gate(const float (&x)[4]) {
    return pack_bf16(x[0] * fast_sigmoid(x[0]) * x[2], x[1] * fast_sigmoid(x[1]) * x[3]);
}

template <int EPILOGUE>
__device__ __forceinline__ void store_rounded(
    const float (&d)[BLOCKS][ROWS / 2], const Target& target, int row, int end, int output) {
    int lane = threadIdx.x % 32;
    // Whole vectors where every row begins at a multiple of 8 bytes.
    bool whole = target.stride % 4 == 0, whole_before = target.outputs % 4 == 0;
#pragma unroll
    for (int eight = 0; eight < ROWS / 8; ++eight) {
        if (row + 8 * eight >= end) break;
        i64 t = row + 8 * eight + lane / 4;
        bf16* line = t < end ? static_cast<bf16*>(target.out) + t * target.stride : nullptr;
        bf16* before = target.before && t < end ? target.before + t * target.outputs : nullptr;
#pragma unroll
        for (int which = 0; which < BLOCKS; ++which) {
            int n = output + 64 * which;
            if (n >= target.outputs) continue;
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = d[which][4 * eight + i];
            if (EPILOGUE != STORE_BF16 && target.before) store_sixteen(x, before, n, target.outputs, whole_before);
            if (EPILOGUE == STORE_GATED) {
                // 8 gates, then the 8 ups that belong to them. There are whole groups of both.
                u32 y = turned(gate(x));
                if (line) *reinterpret_cast<u32*>(line + n / 2 + 2 * (lane % 4)) = y;
                continue;
            }
            if (EPILOGUE == STORE_ACTIVATED) {
#pragma unroll
                for (int i = 0; i < 4; ++i) x[i] = activate<EPILOGUE>(x[i], n + i / 2 * 8 + lane / 4, target);
            }
            store_sixteen(x, line, n, target.outputs, whole);
        }
    }
}

// In f32: eight lanes with neighbouring outputs fill a sector. With PAIRS, groups of 8 rows are added up in twos: the
// parts of 8 tokens.
template <bool PAIRS>
__device__ __forceinline__ void store_f32(
    const float (&d)[BLOCKS][ROWS / 2], const Target& target, int row, int end, int output) {
    int lane = threadIdx.x % 32, first = row + 2 * (lane % 4);
    float* to = static_cast<float*>(target.out) + i64(first) * target.stride + output + lane / 4;
    int left = end - first, room = target.outputs - output - lane / 4;
    constexpr int STEP = PAIRS ? 8 : 4;
#pragma unroll
    for (int i = 0; i + STEP <= ROWS / 2; i += STEP) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (left > j) {
#pragma unroll
                for (int which = 0; which < BLOCKS; ++which) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float x = d[which][i + j + 2 * half];
                        if constexpr (PAIRS) x = d[which][i + 4 + j + 2 * half] + x;
                        if (room > 64 * which + 8 * half) to[64 * which + 8 * half] = x;
                    }
                }
            }
            to += target.stride;
        }
        to += 6 * target.stride;
        left -= 8;
    }
}

// Writes a warp's part of a tile: 16 outputs of each block of 64, for the rows up to `end`.
__device__ __forceinline__ void store(
    const float (&d)[BLOCKS][ROWS / 2], const Target& target, int row, int end, int output) {
    output += threadIdx.x / 32 % 4 * 16;
    switch (target.epilogue) {
#if !FOR_EXPERTS
    case STORE_F32: return store_f32<false>(d, target, row, end, output);
#endif
#if !FOR_EXPERTS && !WEIGHTS_TURNED
    case STORE_PARTS: return store_f32<true>(d, target, row / 2, target.row_limit, output);
    case STORE_ACTIVATED: return store_rounded<STORE_ACTIVATED>(d, target, row, end, output);
#endif
    case STORE_BF16: return store_rounded<STORE_BF16>(d, target, row, end, output);
#if !WEIGHTS_TURNED
    case STORE_GATED: return store_rounded<STORE_GATED>(d, target, row, end, output);
#endif
    }
}

#endif
