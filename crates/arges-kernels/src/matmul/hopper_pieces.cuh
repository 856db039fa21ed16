// How warpgroups that take turns write their tiles: through shared memory, some rows of all outputs at a time, so that
// whole rows go in vectors and the code between two tiles is short.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && IN_TURN

constexpr int PIECE_ROWS = 64;
constexpr int PIECE_BYTES = PIECE_ROWS * OUTPUTS * 2;

// Stores four tiles of 8 by 8 values, each transposed; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_tiles_turned(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

// Lays a warpgroup's results for rows FIRST to FIRST + PIECE_ROWS down, [row, 128 outputs], or with gates [row, 64]. The 16
// bytes of a row that several lanes write or read at a time lie in different banks.
template <int EPILOGUE, int FIRST>
__device__ __forceinline__ void lay_down(
    const float (&d)[BLOCKS][ROWS / 2], u32 piece, const Target& target, int output) {
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    auto value = [&](int which, int eight, int i) { return d[which][FIRST / 2 + 4 * eight + i]; };
    if constexpr (EPILOGUE == STORE_GATED) {
        // 8 gates, then the 8 ups that belong to them: of 8 rows one tile.
        auto inner = [&](int which, int eight) {
            float a = value(which, eight, 0), b = value(which, eight, 1);
            return gate({a, b, value(which, eight, 2), value(which, eight, 3)});
        };
#pragma unroll
        for (int which = 0; which < BLOCKS; ++which) {
            u32 to = piece + lane * 128 + ((which * 4 + warp) ^ lane % 8) * 16;
#pragma unroll
            for (int eight = 0; eight < PIECE_ROWS / 8; eight += 4)
                store_tiles_turned(
                    to + eight * 8 * 128, inner(which, eight), inner(which, eight + 1), inner(which, eight + 2),
                    inner(which, eight + 3));
        }
        return;
    }
    u32 to = piece + (lane / 16 * 8 + lane % 8) * 256 + ((warp * 2 + lane / 8 % 2) ^ lane % 8) * 16;
    int n = output + warp * 16 + lane / 4;
    auto two = [&](int which, int eight, int half) {
        float a = value(which, eight, 2 * half), b = value(which, eight, 2 * half + 1);
        if constexpr (EPILOGUE == STORE_ACTIVATED) {
            int of = n + 64 * which + 8 * half;
            a = activate<EPILOGUE>(a, of, target), b = activate<EPILOGUE>(b, of, target);
        }
        return pack_bf16(a, b);
    };
#pragma unroll
    for (int eight = 0; eight < PIECE_ROWS / 8; eight += 2) {
#pragma unroll
        for (int which = 0; which < BLOCKS; ++which)
            store_tiles_turned(
                to + eight * 8 * 256 + which * 128, two(which, eight, 0), two(which, eight, 1),
                two(which, eight + 1, 0), two(which, eight + 1, 1));
    }
}

// Writes rows that lie in a piece, of so many outputs from `n` on, to rows of `stride`.
template <int WIDTH>
__device__ __forceinline__ void write_down(u32 piece, bf16* out, int stride, int row, int end, int n, int outputs) {
    constexpr int LANES = WIDTH / 8, AT_ONCE = 128 / LANES, TIMES = PIECE_ROWS / AT_ONCE;
    int lane = threadIdx.x % LANES, line = threadIdx.x % 128 / LANES;
    u32 from = piece + line * WIDTH * 2 + (lane ^ line % 8) * 16;
    n += lane * 8;
    if (n >= outputs) return;
    bool whole = stride % 8 == 0 && n + 8 <= outputs;
    bf16* to = out + i64(row + line) * stride + n;
    // A few at a time: registers hold the rest of the tile.
    constexpr int TOGETHER = TIMES < 4 ? TIMES : 4;
#pragma unroll
    for (int first = 0; first < TIMES; first += TOGETHER) {
        uint4 x[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x[i].x), "=r"(x[i].y), "=r"(x[i].z), "=r"(x[i].w)
                         : "r"(from + (first + i) * AT_ONCE * WIDTH * 2));
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i, to += i64(AT_ONCE) * stride) {
            if (row + line + (first + i) * AT_ONCE >= end) return;
            if (whole) {
                *reinterpret_cast<uint4*>(to) = x[i];
                continue;
            }
            u32 words[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (n + j < outputs) reinterpret_cast<u16*>(to)[j] = u16(words[j / 2] >> 16 * (j % 2));
        }
    }
}

template <int EPILOGUE, int FIRST = 0>
__device__ __forceinline__ void store_pieces(
    const float (&d)[BLOCKS][ROWS / 2], u32 piece, const Target& target, int row, int end, int output) {
    auto meet = [] { asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory"); };
    if (row + FIRST >= end || output >= target.outputs) return;
    // What is not activated is kept as it comes out.
    bool before = EPILOGUE != STORE_BF16 && target.before != nullptr
        && (EPILOGUE != STORE_ACTIVATED || output < target.activated);
    if (before) {
        lay_down<STORE_BF16, FIRST>(d, piece, target, output);
        meet();
        write_down<128>(piece, target.before, target.outputs, row + FIRST, end, output, target.outputs);
        meet();
    }
    lay_down<EPILOGUE, FIRST>(d, piece, target, output);
    meet();
    bf16* out = static_cast<bf16*>(target.out);
    if constexpr (EPILOGUE == STORE_GATED)
        write_down<64>(piece, out, target.stride, row + FIRST, end, output / 2, target.outputs / 2);
    else write_down<128>(piece, out, target.stride, row + FIRST, end, output, target.outputs);
    meet();
    if constexpr (FIRST + PIECE_ROWS < ROWS)
        store_pieces<EPILOGUE, FIRST + PIECE_ROWS>(d, piece, target, row, end, output);
}

// Writes a warpgroup's tile for the rows up to `end`.
__device__ __forceinline__ void store_in_pieces(
    const float (&d)[BLOCKS][ROWS / 2], u32 piece, const Target& target, int row, int end, int output) {
    switch (target.epilogue) {
    case STORE_F32: return store_f32<false>(d, target, row, end, output + threadIdx.x / 32 % 4 * 16);
    case STORE_BF16: return store_pieces<STORE_BF16>(d, piece, target, row, end, output);
#if !WEIGHTS_TURNED
    case STORE_PARTS:
        return store_f32<true>(d, target, row / 2, target.row_limit, output + threadIdx.x / 32 % 4 * 16);
    case STORE_ACTIVATED: return store_pieces<STORE_ACTIVATED>(d, piece, target, row, end, output);
    case STORE_GATED: return store_pieces<STORE_GATED>(d, piece, target, row, end, output);
#endif
    }
}

#endif
