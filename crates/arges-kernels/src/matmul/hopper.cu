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

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int K_TILE = 64;
constexpr int OUTPUTS = 64 * BLOCKS * CONSUMERS;
constexpr int WEIGHT_BYTES = OUTPUTS * K_TILE * 2;
constexpr int ROW_BYTES = ROWS * K_TILE * 2;
constexpr int STAGE_BYTES = WEIGHT_BYTES + ROW_BYTES;
constexpr int THREADS = 128 * (CONSUMERS + 1);
// Tiles of rows that share weights in the second-level cache before the next ones are begun.
constexpr int BAND = 16;

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

// A tile of rows of 128 bytes, swizzled over 1024: the form in which the copy engine leaves it.
__device__ __forceinline__ u64 tile_descriptor(u32 address) {
    return u64((address & 0x3ffff) >> 4) | (u64(1) << 16) | (u64(64) << 32) | (u64(1) << 62);
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Transposes an 8 by 8 tile of 16-bit values that is spread over the warp.
__device__ __forceinline__ u32 transpose_tile(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
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

    // First row and first output of a tile that was found.
    __device__ __forceinline__ void place(int tile, int& row, int& output) const {
        int row_tiles = (end - begin + ROWS - 1) / ROWS;
        int local = tile - before;
        int band = local / (BAND * output_tiles);
        local -= band * BAND * output_tiles;
        int width = min(BAND, row_tiles - band * BAND);
        row = begin + (band * BAND + local % width) * ROWS;
        output = local / width * OUTPUTS;
    }
};

__device__ __forceinline__ void store_pair(u16* at, u32 pair, int valid) {
    if (valid >= 2) {
        *reinterpret_cast<u32*>(at) = pair;
    } else if (valid == 1) {
        *at = u16(pair);
    }
}

// Writes the 64 outputs of a warpgroup for ROWS rows.
__device__ __forceinline__ void store(
    const float (&d)[ROWS / 2], void* out, int stride, int epilogue, int activated, int row, int end, int output,
    int outputs, int row_limit) {
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    int high = output + 16 * warp;
#pragma unroll
    for (int block = 0; block < ROWS / 8; ++block) {
        if (row + 8 * block >= end) break;
        const float* x = &d[4 * block];
        if (epilogue == STORE_F32) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int t = row + 8 * block + 2 * (lane % 4) + i % 2, n = high + lane / 4 + i / 2 * 8;
                if (t < end && n < outputs) static_cast<float*>(out)[i64(t) * stride + n] = x[i];
            }
        } else if (epilogue == STORE_GATED) {
            u32 pair = transpose_tile(pack_bf16(silu(x[0]) * x[2], silu(x[1]) * x[3]));
            int t = row + 8 * block + lane / 4, n = high / 2 + 2 * (lane % 4);
            if (t < end) store_pair(static_cast<u16*>(out) + i64(t) * stride + n, pair, outputs / 2 - n);
        } else if (epilogue == STORE_PARTS) {
#if ROWS % (8 * PARTS) == 0
            if (block % PARTS == 0) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    // The smallest part first.
                    float sum = d[4 * (block + PARTS - 1) + i];
#pragma unroll
                    for (int part = PARTS - 2; part >= 0; --part) sum += d[4 * (block + part) + i];
                    int t = (row / 8 + block) / PARTS * 8 + 2 * (lane % 4) + i % 2, n = high + lane / 4 + i / 2 * 8;
                    if (t < row_limit && n < outputs) static_cast<float*>(out)[i64(t) * stride + n] = sum;
                }
            }
#endif
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float a = x[2 * i], b = x[2 * i + 1];
                if (epilogue == STORE_ACTIVATED) {
                    bool inner = high + lane / 4 + 8 * i < activated;
                    a = inner ? silu(a) : sigmoid(a);
                    b = inner ? silu(b) : sigmoid(b);
                }
                u32 pair = transpose_tile(pack_bf16(a, b));
                int t = row + 8 * block + lane / 4, n = high + 8 * i + 2 * (lane % 4);
                if (t < end) store_pair(static_cast<u16*>(out) + i64(t) * stride + n, pair, outputs - n);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(
    const __grid_constant__ Map weights, const __grid_constant__ Map tokens, void* out, const int* offsets, int experts,
    int rows, int outputs, int k, int stride, int epilogue, int activated, int row_limit) {
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
        // Weights never change, and the offsets were written before the kernel ahead of this one began: both may be
        // read before that one has ended. Activations may not.
        bool waited = false;
        int count = 0;
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
            int row, output;
            walk.place(tile, row, output);
            int line = walk.expert * outputs + output;
            for (int step = 0; step < steps; ++step, ++count) {
                int stage = count % STAGES;
                u32 weight_tile = tiles + stage * STAGE_BYTES, barrier = full + 8 * stage;
                if (count >= STAGES) await(empty + 8 * stage, (count / STAGES - 1) & 1);
                expect_bytes(barrier, STAGE_BYTES);
                copy_tile(weight_tile, &weights, barrier, step * K_TILE, line);
                if (!waited) {
                    bool last = step + 1 == steps || count + 1 == STAGES;
                    if (!last) continue;
                    wait_for_previous();
                    let_next_start();
                    waited = true;
                    for (int early = 0; early <= step; ++early) {
                        u32 row_tile = tiles + early * STAGE_BYTES + WEIGHT_BYTES;
                        copy_tile(row_tile, &tokens, full + 8 * early, early * K_TILE, row);
                    }
                } else {
                    copy_tile(weight_tile + WEIGHT_BYTES, &tokens, barrier, step * K_TILE, row);
                }
            }
        }
        if (!waited) let_next_start();
        return;
    }

    wait_for_previous();
    let_next_start();
    int count = 0;
    for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
        int row, output;
        walk.place(tile, row, output);
        float d[BLOCKS][ROWS / 2];
        for (int step = 0; step < steps; ++step, ++count) {
            int stage = count % STAGES;
            await(full + 8 * stage, count / STAGES & 1);
            u32 base = tiles + stage * STAGE_BYTES;
            u64 b = tile_descriptor(base + WEIGHT_BYTES);
            begin_products();
#pragma unroll
            for (int part = 0; part < K_TILE / 16; ++part) {
#pragma unroll
                for (int block = 0; block < BLOCKS; ++block) {
                    u64 a = tile_descriptor(base + (group * BLOCKS + block) * 64 * K_TILE * 2);
                    // 16 columns are 32 bytes, 2 in the units of a descriptor.
                    wgmma<ROWS>(d[block], a + 2 * part, b + 2 * part, step > 0 || part > 0);
                }
            }
            commit_products();
            await_products<1>();
            // The products of the step before are done, so that its stage is free.
            if (step > 0 && threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
        }
        await_products<0>();
        if (threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            int first = output + (group * BLOCKS + block) * 64;
            if (first < outputs)
                store(d[block], out, stride, epilogue, activated, row, walk.end, first, outputs, row_limit);
        }
    }
}

#endif
