// Products of bf16 rows with bf16 weights on Hopper's tensor cores: y[t, n] = sum_k x[t, k] w[n, k], for one matrix or
// for the experts' at once, each with its own segment of rows.
//
// Weights are the operand of 64 rows and activations the one of N rows, so that the same kernel streams weights past
// one token and multiplies thousands. Blocks stay and take tile after tile, and the copies for the next begin while the
// last is multiplied. Products along outputs, for gradients, are of weights that lie across them (WEIGHTS_TURNED).
//
// Every output element is one accumulator that passes over K in ascending order, whatever the other rows and however
// many: its bits depend on its own row alone.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Tiles of rows that share weights in the second-level cache before the next ones are begun: some 2048 rows of one
// matrix. Where only the boxes that hold rows are multiplied (PARTIAL), an expert's last tile, which is seldom full,
// comes apart from the full ones: blocks that take turns at tiles of one cost stay together, and find in the cache what
// the others have asked for.
constexpr int BAND = ROWS >= 128 ? 2048 / ROWS : 16;
constexpr int EXPERT_BAND = PARTIAL ? 2 : BAND;

enum Epilogue { STORE_F32, STORE_BF16, STORE_ACTIVATED, STORE_GATED, STORE_PARTS };

// Walks through a block's tiles: of every expert, bands of row tiles; in a band, weights; for weights, row tiles.
struct Walk {
    const int* offsets;
    int experts, rows, output_tiles;
    int expert, begin, end, before, here;

    __device__ __forceinline__ Walk(const int* offsets, int experts, int rows, int outputs)
        : offsets(offsets), experts(experts), rows(rows), output_tiles((outputs + OUTPUTS - 1) / OUTPUTS), expert(-1),
          begin(0), end(0), before(0), here(0) {}

    // Moves on to the expert of `tile`; tiles are asked for in ascending order. False when there is none.
    __device__ __forceinline__ bool find(int tile) {
        while (tile >= before + here) {
            before += here;
            expert += 1;
            if (expert >= experts) return false;
            begin = offsets ? offsets[expert] : 0;
            end = offsets ? offsets[expert + 1] : rows;
            here = (end - begin + ROWS - 1) / ROWS * output_tiles;
        }
        return true;
    }

    // Boxes of rows that a tile from `row` on has.
    __device__ __forceinline__ int boxes(int row) const {
        return PARTIAL ? min(BOXES, (end - row + BOX - 1) / BOX) : BOXES;
    }

    // First row and first output of a tile that was found.
    __device__ __forceinline__ void place(int tile, int& row, int& output) const {
        int row_tiles = (end - begin + ROWS - 1) / ROWS;
        int local = tile - before;
        int most = offsets ? EXPERT_BAND : BAND, band = local / (most * output_tiles);
        local -= band * most * output_tiles;
        int width = min(most, row_tiles - band * most);
        row = begin + (band * most + local % width) * ROWS;
        output = local / width * OUTPUTS;
    }
};

// Where the results of a product go, and as what.
struct Target {
    void* out;
    // Where the product itself goes as well, rounded, rows of all outputs; or null.
    bf16* before;
    int stride, epilogue, activated, outputs, row_limit;
};

__device__ __forceinline__ float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

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
                u32 y = turned(pack_bf16(x[0] * fast_sigmoid(x[0]) * x[2], x[1] * fast_sigmoid(x[1]) * x[3]));
                if (line) *reinterpret_cast<u32*>(line + n / 2 + 2 * (lane % 4)) = y;
                continue;
            }
            if (EPILOGUE == STORE_ACTIVATED) {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    x[i] = (n + i / 2 * 8 + lane / 4 < target.activated ? x[i] : 1.0f) * fast_sigmoid(x[i]);
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
    case STORE_F32: return store_f32<false>(d, target, row, end, output);
    case STORE_PARTS: return store_f32<true>(d, target, row / 2, target.row_limit, output);
    case STORE_BF16: return store_rounded<STORE_BF16>(d, target, row, end, output);
    case STORE_ACTIVATED: return store_rounded<STORE_ACTIVATED>(d, target, row, end, output);
    case STORE_GATED: return store_rounded<STORE_GATED>(d, target, row, end, output);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(
    const __grid_constant__ Map weights, const __grid_constant__ Map tokens, void* out, bf16* before,
    const int* offsets, int experts, int rows, int outputs, int k, int stride, int epilogue, int activated,
    int row_limit) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    init_stages(full, empty);

    int group = threadIdx.x / 128;
    int steps = (k + K_TILE - 1) / K_TILE;
    Walk walk(offsets, experts, rows, outputs);
    if (group == CONSUMERS) {
        if (threadIdx.x != 128 * CONSUMERS) return;
        // Weights do not change, or this kernel was not started early; and the offsets were written before the kernel
        // ahead of this one began: both may be read before that one has ended. Activations may not.
        bool waited = false;
        int count = 0;
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
            int row, output;
            walk.place(tile, row, output);
            int line = walk.expert * (WEIGHTS_TURNED ? k : outputs), boxes = walk.boxes(row);
            for (int step = 0; step < steps; ++step, ++count) {
                int stage = count % STAGES;
                u32 weight_tile = tiles + stage * STAGE_BYTES, barrier = full + 8 * stage;
                if (count >= STAGES) await(empty + 8 * stage, (count / STAGES - 1) & 1);
                expect_bytes(barrier, WEIGHT_BYTES + boxes * BOX_BYTES);
                // What is copied behind an expert's last row is multiplied with zeros, which the rows end with.
                if constexpr (WEIGHTS_TURNED)
                    copy_columns(weight_tile, &weights, barrier, output, line + step * K_TILE, OUTPUTS / 64);
                else copy_tile(weight_tile, &weights, barrier, step * K_TILE, line + output);
                if (!waited) {
                    bool last = step + 1 == steps || count + 1 == STAGES;
                    if (!last) continue;
                    wait_for_previous();
                    let_next_start();
                    waited = true;
                    for (int early = 0; early <= step; ++early) {
                        u32 row_tile = tiles + early * STAGE_BYTES + WEIGHT_BYTES;
                        copy_rows(row_tile, &tokens, full + 8 * early, early * K_TILE, row, boxes);
                    }
                } else {
                    copy_rows(weight_tile + WEIGHT_BYTES, &tokens, barrier, step * K_TILE, row, boxes);
                }
            }
        }
        if (!waited) let_next_start();
        return;
    }

    wait_for_previous();
    let_next_start();
    Target target = {out, before, stride, epilogue, activated, outputs, row_limit};
    int count = 0;
    for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
        int row, output;
        walk.place(tile, row, output);
        float d[BLOCKS][ROWS / 2];
        multiply_boxes<BOXES>(walk.boxes(row), d, tiles, full, empty, group, steps, K_TILE, count);
        store(d, target, row, walk.end, output + group * BLOCKS * 64);
    }
}

#endif
