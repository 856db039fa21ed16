// Products of bf16 rows with bf16 weights on Hopper's tensor cores: y[t, n] = sum_k x[t, k] w[n, k], for one matrix or
// for the experts' at once, each with its own segment of rows.
//
// Weights are the operand of 64 rows and activations the one of N rows, so that the same kernel streams weights past
// one token and multiplies thousands. One warp asks the copy engine for tiles of [outputs, 64] weights and [rows, 64]
// activations, STAGES of them ahead; CONSUMERS warpgroups multiply. Blocks stay and take tile after tile, and the copies
// for the next begin while the last is multiplied.
//
// Every output element is one accumulator that passes over K in ascending order, whatever the other rows and however
// many: its bits depend on its own row alone.
//
// Gradients are products along outputs, of weights that lie across them, and along tokens, of rows that do. The tensor
// cores read such operands as well (WEIGHTS_TURNED, ROWS_TURNED): a tile is then [64, outputs] or [64, rows] in memory, in
// boxes of 64 columns.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int K_TILE = 64;
constexpr int OUTPUTS = 64 * BLOCKS * CONSUMERS;
constexpr int WEIGHT_BYTES = OUTPUTS * K_TILE * 2;
// Rows are copied in boxes of so many, of which only those are asked for that hold any.
constexpr int BOX = ROWS % 64 == 0 ? 64 : ROWS;
constexpr int BOXES = ROWS / BOX;
constexpr int BOX_BYTES = BOX * K_TILE * 2;
// 64 columns of a turned tile.
constexpr int TURNED_BOX = 64 * K_TILE * 2;
constexpr int STAGE_BYTES = WEIGHT_BYTES + BOXES * BOX_BYTES;
constexpr int THREADS = 128 * (CONSUMERS + 1);
// Tiles of rows that share weights in the second-level cache before the next ones are begun: some 2048 rows of one
// matrix. Where only the boxes that hold rows are multiplied (PARTIAL), an expert's last tile, which is seldom full,
// comes apart from the full ones: blocks that take turns at tiles of one cost stay together, and find in the cache what
// the others have asked for.
constexpr int BAND = ROWS >= 128 ? 2048 / ROWS : 16;
constexpr int EXPERT_BAND = PARTIAL ? 2 : BAND;

struct alignas(64) Map {
    char opaque[128];
};

enum Epilogue { STORE_F32, STORE_BF16, STORE_ACTIVATED, STORE_GATED, STORE_PARTS };

__device__ __forceinline__ void init_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

__device__ __forceinline__ void expect_bytes(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, int parity) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void copy_tile(u32 shared, const Map* map, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

__device__ __forceinline__ void copy_rows(u32 shared, const Map* map, u32 barrier, int column, int row, int boxes) {
    for (int box = 0; box < boxes; ++box)
        copy_tile(shared + box * BOX_BYTES, map, barrier, column, row + box * BOX);
}

// The columns of a turned tile: a box for every 64 of them.
__device__ __forceinline__ void copy_columns(u32 shared, const Map* map, u32 barrier, int column, int row, int boxes) {
    for (int box = 0; box < boxes; ++box)
        copy_tile(shared + box * TURNED_BOX, map, barrier, column + box * 64, row);
}

// A tile of rows of 128 bytes, swizzled over 1024: the form in which the copy engine leaves it.
template <bool TURNED> __device__ __forceinline__ u64 tile_descriptor(u32 address) {
    // The distance between boxes, which matters in turned ones alone.
    constexpr u64 apart = TURNED ? TURNED_BOX >> 4 : 1;
    return u64((address & 0x3ffff) >> 4) | (apart << 16) | (u64(64) << 32) | (u64(1) << 62);
}

// From 16 values along K to the next, in the units of a descriptor: 32 bytes of every row, or 16 rows.
constexpr int WEIGHT_PART = WEIGHTS_TURNED ? 16 * 128 / 16 : 2;
constexpr int ROW_PART = ROWS_TURNED ? 16 * 128 / 16 : 2;

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

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

// Clears rows `left` to 64 of turned tiles: of a warpgroup's outputs, and of N rows.
template <int N> __device__ __forceinline__ void clear_behind(u32 base, int group, int left) {
    int vectors = (64 - left) * 8;
    auto clear = [&](u32 tile, int thread, int threads) {
        for (int i = thread; i < vectors; i += threads)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + left * 128 + i * 16), "r"(0) : "memory");
    };
    for (int block = 0; block < BLOCKS; ++block)
        clear(base + (group * BLOCKS + block) * TURNED_BOX, threadIdx.x % 128, 128);
    for (int box = 0; box < N / 64; ++box)
        clear(base + WEIGHT_BYTES + box * TURNED_BOX, threadIdx.x, 128 * CONSUMERS);
    // The tensor cores see it after this, and what the other warpgroups have cleared after the barrier.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(128 * CONSUMERS) : "memory");
}

// Multiplies the tiles of all steps along K for a warpgroup's outputs and the first N rows. Where both operands are
// turned, the last step has `left` of 64: what was copied behind those belongs to other experts.
template <int N>
__device__ __forceinline__ void multiply(
    float (&d)[BLOCKS][ROWS / 2], u32 tiles, u32 full, u32 empty, int group, int steps, int left, int& count) {
    for (int step = 0; step < steps; ++step, ++count) {
        int stage = count % STAGES;
        await(full + 8 * stage, count / STAGES & 1);
        u32 base = tiles + stage * STAGE_BYTES;
        if constexpr (WEIGHTS_TURNED && ROWS_TURNED) {
            if (step + 1 == steps && left < K_TILE) clear_behind<N>(base, group, left);
        }
        u64 b = tile_descriptor<ROWS_TURNED>(base + WEIGHT_BYTES);
        begin_products();
#pragma unroll
        for (int part = 0; part < K_TILE / 16; ++part) {
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                u64 a = tile_descriptor<WEIGHTS_TURNED>(base + (group * BLOCKS + block) * 64 * K_TILE * 2);
                float(&target)[N / 2] = *reinterpret_cast<float(*)[N / 2]>(&d[block][0]);
                wgmma<N>(target, a + WEIGHT_PART * part, b + ROW_PART * part, step > 0 || part > 0);
            }
        }
        commit_products();
        await_products<1>();
        // The products of the step before are done, so that its stage is free.
        if (step > 0 && threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
    }
    await_products<0>();
    if (threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
}

// The same for as many boxes of rows as there are: the last rows of an expert seldom fill a tile.
template <int MOST>
__device__ __forceinline__ void multiply_boxes(
    int boxes, float (&d)[BLOCKS][ROWS / 2], u32 tiles, u32 full, u32 empty, int group, int steps, int left,
    int& count) {
    if constexpr (PARTIAL && MOST > 1) {
        if (boxes < MOST) return multiply_boxes<MOST - 1>(boxes, d, tiles, full, empty, group, steps, left, count);
    }
    multiply<MOST * BOX>(d, tiles, full, empty, group, steps, left, count);
}

#if GRADIENTS

// The warp that copies needs few registers, those that multiply many: of 168 for each of three warpgroups.
static_assert(CONSUMERS == 2, "registers are shared among three warpgroups");
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }

// Adds a warp's part of a tile to f32 values: as `store`, but for gradients, which add up. With `gates`, rows stand in
// turn in groups of 8: as many gates, and the ups behind all of them. Values are read some rows ahead of their sums, as
// each waits for memory; `fresh` ones are zeros and are not read.
__device__ __forceinline__ void accumulate(
    const float (&d)[BLOCKS][ROWS / 2], float* out, int stride, int outputs, int row, int end, int output, int gates,
    bool fresh) {
    constexpr int AHEAD = 4;
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    int room = outputs - output - 16 * warp - lane / 4;
    out += output + 16 * warp + lane / 4;
#pragma unroll
    for (int first = 0; first < ROWS / 8; first += AHEAD) {
        float sums[AHEAD][2][BLOCKS][2];
#pragma unroll
        for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                int eight = row / 8 + first + i;
                int to_row = gates ? eight / 2 * 8 + eight % 2 * gates : eight * 8;
                float* to = out + i64(to_row + 2 * (lane % 4)) * stride;
#pragma unroll
                for (int j = 0; j < 2; ++j, to += stride) {
                    if (eight * 8 + 2 * (lane % 4) + j >= end) continue;
#pragma unroll
                    for (int which = 0; which < BLOCKS; ++which) {
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            if (room <= 64 * which + 8 * half) continue;
                            float* at = to + 64 * which + 8 * half;
                            if (pass == 0) sums[i][j][which][half] = fresh ? 0.0f : *at;
                            else *at = sums[i][j][which][half] + d[which][4 * (first + i) + j + 2 * half];
                        }
                    }
                }
            }
        }
    }
}

// out[e, n, k] += sum over t of dy[n, t] x[k, t], t from offsets[e] to offsets[e + 1]: the gradients of the experts'
// weights [rows, outputs]. Turned, dy and x are rows of activations, [t, n] and [t, k]; else columns of them that lie as
// rows, and offsets are multiples of K_TILE. Without offsets there is one matrix and t goes to `depth`. Matrices of `out`
// are `out_stride` values apart. Behind their tiles come those of another matrix [other_rows, other_outputs] of no
// experts, whose gradient sums over t up to `depth` too: a few tiles alone would leave most of the card idle.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient(
    const __grid_constant__ Map x, const __grid_constant__ Map dy, float* out, const int* offsets, int experts,
    int rows, int outputs, int depth, int gates, i64 out_stride, int fresh, const __grid_constant__ Map other_x,
    const __grid_constant__ Map other_dy, float* other_out, int other_rows, int other_outputs) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(full + 8 * stage, 1);
            init_barrier(empty + 8 * stage, CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous();
    let_next_start();

    int row_tiles = (rows + ROWS - 1) / ROWS, of_each = row_tiles * ((outputs + OUTPUTS - 1) / OUTPUTS);
    int other_row_tiles = (other_rows + ROWS - 1) / ROWS, all = experts * of_each;
    int others = other_row_tiles * ((other_outputs + OUTPUTS - 1) / OUTPUTS);
    // With an expert behind the last for the other matrix.
    auto each_tile = [&](auto body) {
        for (int tile = blockIdx.x; tile < all + others; tile += gridDim.x) {
            bool other = tile >= all;
            int expert = other ? experts : tile / of_each, local = other ? tile - all : tile % of_each;
            int begin = offsets && !other ? offsets[expert] : 0, end = offsets && !other ? offsets[expert + 1] : depth;
            if (begin >= end) continue;
            int tiles_down = other ? other_row_tiles : row_tiles, height = other ? other_rows : rows;
            int row = local % tiles_down * ROWS, output = local / tiles_down * OUTPUTS;
            body(expert, begin, end, row, output, PARTIAL ? min(BOXES, (height - row + BOX - 1) / BOX) : BOXES);
        }
    };
    int group = threadIdx.x / 128, count = 0;
    if (group == CONSUMERS) {
        give_registers();
        if (threadIdx.x != 128 * CONSUMERS) return;
        each_tile([&](int expert, int begin, int end, int row, int output, int boxes) {
            const Map *from_x = expert == experts ? &other_x : &x, *from_dy = expert == experts ? &other_dy : &dy;
            for (int from = begin; from < end; from += K_TILE, ++count) {
                int stage = count % STAGES;
                u32 to = tiles + stage * STAGE_BYTES, barrier = full + 8 * stage;
                if (count >= STAGES) await(empty + 8 * stage, (count / STAGES - 1) & 1);
                expect_bytes(barrier, WEIGHT_BYTES + boxes * BOX_BYTES);
                if constexpr (WEIGHTS_TURNED && ROWS_TURNED) {
                    copy_columns(to, from_x, barrier, output, from, OUTPUTS / 64);
                    copy_columns(to + WEIGHT_BYTES, from_dy, barrier, row, from, boxes);
                } else {
                    copy_tile(to, from_x, barrier, from, output);
                    copy_rows(to + WEIGHT_BYTES, from_dy, barrier, from, row, boxes);
                }
            }
        });
    } else {
        take_registers();
        each_tile([&](int expert, int begin, int end, int row, int output, int boxes) {
            int steps = (end - begin + K_TILE - 1) / K_TILE, left = end - begin - (steps - 1) * K_TILE;
            float d[BLOCKS][ROWS / 2];
            multiply_boxes<BOXES>(boxes, d, tiles, full, empty, group, steps, left, count);
            output += group * BLOCKS * 64;
            if (expert == experts)
                accumulate(d, other_out, other_outputs, other_outputs, row, other_rows, output, 0, fresh);
            else accumulate(d, out + expert * out_stride, outputs, outputs, row, rows, output, gates, fresh);
        });
    }
}

#else

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(
    const __grid_constant__ Map weights, const __grid_constant__ Map tokens, void* out, bf16* before,
    const int* offsets, int experts, int rows, int outputs, int k, int stride, int epilogue, int activated,
    int row_limit) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(full + 8 * stage, 1);
            init_barrier(empty + 8 * stage, CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

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

#endif
