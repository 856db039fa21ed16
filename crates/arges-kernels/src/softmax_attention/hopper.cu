// Causal attention of any spans with Hopper's warpgroup products. Compiled for a power of two GROUP <= 128 and HEAD_DIM
// 64 or 128, besides what pages.cuh needs.
//
// A tile is 128 rows of one key-value head: 128 / GROUP tokens, on a grid from the sequence start, times GROUP query
// heads. It passes over blocks of 128 keys (two pages) from the sequence start up to the one that holds its tokens, so
// that what a row adds up, and in which order, depends on its position alone. One warpgroup brings keys, values and
// queries to shared memory; two have 64 rows each and multiply. Each starts on the scores of the next block before it
// weighs the values of the last, so that the exponentials of one pair run beside the products of another.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int KEYS = 128, TILE_ROWS = 128, TILE_TOKENS = TILE_ROWS / GROUP, STAGES = 2;
constexpr int STRIPS = HEAD_DIM / 64, STEPS = HEAD_DIM / 16;
constexpr int STRIP_BYTES = PAGE * 128;                  // [PAGE, 64] of a page
constexpr int BLOCK_BYTES = KEYS * HEAD_DIM * 2;         // keys, or values, of a block
constexpr int QUERY_BYTES = TILE_ROWS * HEAD_DIM * 2;
constexpr int CONSUMER_WARPS = 8, QUERY_THREADS = 64, TICKETS = 4;
constexpr float NONE = -3.0e38f;

// Describes the matrix `offset` bytes behind another in shared memory, whose rows of 128 bytes are swizzled; 8 rows are 1024
// bytes, and strips of 64 columns `strip_bytes`, apart. What is the same for all of a product's steps is computed once, and
// for each step its offset added to the lower half.
__device__ __forceinline__ u64 describe(u32 address, u32 offset, u32 strip_bytes) {
    const u32 first = (address >> 4 & 0x3fff) | strip_bytes >> 4 << 16;
    return u64(first + offset / 16) | u64(1024 >> 4 | 1 << 30) << 32;
}

__device__ __forceinline__ void multiply_keys(float (&d)[64], u64 a, u64 b, int keep) {
    asm volatile(
        "{.reg .pred keep; setp.ne.b32 keep, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "%64, %65, keep, 1, 1, 0, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(keep));
}

#if HEAD_DIM == 128

__device__ __forceinline__ void multiply_values(float (&d)[64], const u32 (&a)[4], u64 b, int keep) {
    asm volatile(
        "{.reg .pred keep; setp.ne.b32 keep, %69, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, keep, 1, 1, 1;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

#else

__device__ __forceinline__ void multiply_values(float (&d)[32], const u32 (&a)[4], u64 b, int keep) {
    asm volatile(
        "{.reg .pred keep; setp.ne.b32 keep, %37, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, keep, 1, 1, 1;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

#endif

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Never sleeps, as no total is negative; but the assembler does not move a wait for products in front of it, and so not
// in front of the exponentials that are to run beside them.
__device__ __forceinline__ void follow(float total) {
    asm volatile("{.reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p nanosleep.u32 1;}" ::"f"(total) : "memory");
}

__device__ __forceinline__ float power_of_two(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

// Turns scores into weights relative to the running maximum. A thread has two rows, `lane / 4` and 8 more.
__device__ __forceinline__ void soften(float (&score)[64], float (&most)[2], float (&total)[2], float (&shrink)[2],
                                       float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float now = most[h];
#pragma unroll
        for (int i = 0; i < 16; i++) now = fmaxf(now, fmaxf(score[4 * i + 2 * h], score[4 * i + 2 * h + 1]));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        shrink[h] = power_of_two((most[h] - now) * scale);
        most[h] = now;
        float origin = now * scale;
        float part[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < 16; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float& x = score[4 * i + 2 * h + j];
                x = power_of_two(fmaf(x, scale, -origin));
                part[j] += x;
            }
        }
        total[h] = total[h] * shrink[h] + (part[0] + part[1]);
    }
}

__device__ __forceinline__ void pack_weights(u32 (&weight)[8][4], const float (&score)[64]) {
#pragma unroll
    for (int step = 0; step < 8; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) weight[step][i] = pack_bf16(score[8 * step + 2 * i], score[8 * step + 2 * i + 1]);
    }
}

// Scores of a warpgroup's 64 rows with the keys of a block.
__device__ __forceinline__ void start_scores(float (&score)[64], u32 queries, u32 keys) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u64 a = describe(queries, step / 4 * (TILE_ROWS * 128) + step % 4 * 32, 16);
        u64 b = describe(keys, step / 4 * (KEYS * 128) + step % 4 * 32, 16);
        multiply_keys(score, a, b, step > 0);
    }
    commit_products();
}

__device__ __forceinline__ void start_sums(float (&sum)[HEAD_DIM / 2], const u32 (&weight)[8][4], u32 values, bool keep) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        u64 b = describe(values, step / 4 * (STRIPS * STRIP_BYTES) + step % 4 * 2048, STRIP_BYTES);
        multiply_values(sum, weight[step], b, step > 0 || keep);
    }
    commit_products();
}

// out [rows, heads * HEAD_DIM], and lse [rows, heads] unless null. `scale` is in units of log 2. One block a multiprocessor;
// `drawn` is 0 before and after.
extern "C" __global__ void __launch_bounds__(384, 1)
prefill(const Span* spans, int span_count, int rows, const int* tables, int table_stride, int slots, int page_count,
        int kv_heads, const bf16* projected, i64 stride, const bf16* pages, float scale, bf16* out, float* lse, int* drawn) {
    Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    extern __shared__ char shared[];
    u32 base = (shared_address(shared) + 1023) / 1024 * 1024;
    u32 all_queries = base, all_keys = all_queries + 2 * QUERY_BYTES, all_values = all_keys + STAGES * BLOCK_BYTES;
    u32 barriers = all_values + STAGES * BLOCK_BYTES;
    u32 keys_full = barriers, keys_free = keys_full + 8 * STAGES, values_full = keys_free + 8 * STAGES,
        values_free = values_full + 8 * STAGES, queries_full = values_free + 8 * STAGES,
        queries_free = queries_full + 16, tickets_full = queries_free + 16;
    __shared__ volatile int tickets[TICKETS];
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(keys_full + 8 * i, 1);
            barrier_init(values_full + 8 * i, 1);
            barrier_init(keys_free + 8 * i, CONSUMER_WARPS);
            barrier_init(values_free + 8 * i, CONSUMER_WARPS);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(queries_full + 8 * i, QUERY_THREADS);
            barrier_init(queries_free + 8 * i, CONSUMER_WARPS);
        }
        for (int i = 0; i < TICKETS; i++) barrier_init(tickets_full + 8 * i, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous();
    let_next_start();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A tile goes to whichever block is free. The first warp draws the numbers, one ahead; it has at most two blocks of
    // keys in hand, so that nobody is as far behind as the ring of numbers is long.
    auto pass_ticket = [&](int turn, int ticket) {
        if (lane != 0) return;
        tickets[turn % TICKETS] = ticket;
        barrier_arrive(tickets_full + 8 * (turn % TICKETS));
    };
    auto take_tile = [&](int turn) {
        barrier_wait(tickets_full + 8 * (turn % TICKETS), turn / TICKETS % 2);
        return find_tile<TILE_TOKENS>(batch, kv_heads, tickets[turn % TICKETS]);
    };
    if (warp < 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {
            // What earlier kernels stored is read by the copy engine.
            asm volatile("fence.proxy.async;" ::: "memory");
            int filled = 0, ticket = blockIdx.x;
            pass_ticket(0, ticket);
            for (int turn = 0;; turn++) {
                Tile tile = find_tile<TILE_TOKENS>(batch, kv_heads, ticket);
                if (tile.span.slot < 0) {
                    // Each block that had a tile draws one number in vain; whose is the last leaves the counter at 0.
                    if (lane == 0 && tile.beyond == gridDim.x - 1) *drawn = 0;
                    break;
                }
                int last = (tile.span.position + tile.span.rows - 1) / PAGE, blocks = tile.token / KEYS + 1;
                int page = 0;
                for (int block = 0; block < blocks; block++, filled++) {
                    // Where a sequence ends in the first page of a block, that page stands in for the second.
                    if (block % 16 == 0) page = page_at(batch, tile.span, min(block * 2 + lane, last));
                    int stage = filled % STAGES, phase = filled / STAGES % 2 ^ 1;
                    const char* from[2];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        int own = __shfl_sync(~0u, page, block % 16 * 2 + i);
                        from[i] = reinterpret_cast<const char*>(pages + head_page(own, kv_heads, tile.kv_head));
                    }
                    barrier_wait(keys_free + 8 * stage, phase);
                    if (lane == 0) {
                        barrier_expect(keys_full + 8 * stage, BLOCK_BYTES);
                        u32 to = all_keys + stage * BLOCK_BYTES;
#pragma unroll
                        for (int i = 0; i < 2 * STRIPS; i++) {
                            copy_bulk(to + i / 2 * (KEYS * 128) + i % 2 * STRIP_BYTES, from[i % 2] + i / 2 * STRIP_BYTES,
                                      STRIP_BYTES, keys_full + 8 * stage);
                        }
                    }
                    barrier_wait(values_free + 8 * stage, phase);
                    if (lane == 0) {
                        barrier_expect(values_full + 8 * stage, BLOCK_BYTES);
                        u32 to = all_values + stage * BLOCK_BYTES;
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            copy_bulk(to + i * (BLOCK_BYTES / 2), from[i] + BLOCK_BYTES / 2, BLOCK_BYTES / 2,
                                      values_full + 8 * stage);
                        }
                    }
                    if (block == 0) {
                        if (lane == 0) ticket = gridDim.x + atomicAdd(drawn, 1);
                        ticket = __shfl_sync(~0u, ticket, 0);
                        pass_ticket(turn + 1, ticket);
                    }
                    __syncwarp();
                }
            }
        } else if (warp >= 2) {
            for (int turn = 0;; turn++) {
                Tile tile = take_tile(turn);
                if (tile.span.slot < 0) break;
                u32 to = all_queries + turn % 2 * QUERY_BYTES;
                barrier_wait(queries_free + 8 * (turn % 2), turn / 2 % 2 ^ 1);
                int piece = threadIdx.x % PIECES;
                for (int row = (threadIdx.x - 64) / PIECES; row < TILE_ROWS; row += QUERY_THREADS / PIECES) {
                    int place = tile.token + row / GROUP - tile.span.position;
                    bool present = place >= 0 && place < tile.span.rows;
                    const bf16* from = projected + i64(tile.span.first + (present ? place : 0)) * stride +
                                       (tile.kv_head * GROUP + row % GROUP) * HEAD_DIM + piece * 8;
                    copy_async(to + (piece / 8 * TILE_ROWS + row) * 128 + (piece ^ row) % 8 * 16, from, present);
                }
                commit_copies();
                await_copies<0>();
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                barrier_arrive(queries_full + 8 * (turn % 2));
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int group = warp / 4 - 1;
        int row = group * 64 + warp % 4 * 16 + lane / 4;
        u32 used = 0;
        bool arrives = lane == 0;
        float score[64], sum[HEAD_DIM / 2];
        auto queries_of = [&](int turn) { return uniform(all_queries + turn % 2 * QUERY_BYTES + group * (64 * 128)); };
        auto keys_of = [&](u32 use) { return uniform(all_keys + use % STAGES * BLOCK_BYTES); };
        auto values_of = [&](u32 use) { return uniform(all_values + use % STAGES * BLOCK_BYTES); };
        // Scores with the first block of keys of a tile; of anything where there is none.
        auto start_tile = [&](int turn, bool present) {
            if (present) {
                barrier_wait(queries_full + 8 * (turn % 2), turn / 2 % 2);
                barrier_wait(keys_full + 8 * (used % STAGES), used / STAGES % 2);
            }
            begin_products();
            start_scores(score, queries_of(turn), keys_of(used));
        };
        Tile tile = take_tile(0);
        start_tile(0, tile.span.slot >= 0);
        for (int turn = 0; tile.span.slot >= 0; turn++) {
            u32 queries = queries_of(turn);
            int blocks = tile.token / KEYS + 1;
            float most[2] = {NONE, NONE}, total[2] = {0.0f, 0.0f}, shrink[2];
            u32 weight[8][4];
            // The last block has the tile's own tokens, and tokens after them.
            auto mask = [&] {
#pragma unroll
                for (int i = 0; i < 64; i++) {
                    int key = i / 4 * 8 + lane % 4 * 2 + i % 2;
                    int seen = tile.token % KEYS + (row + i / 2 % 2 * 8) / GROUP;
                    if (key > seen) score[i] = __int_as_float(0xff800000);
                }
            };
            await_products<0>();
            settle(score);
            if (arrives) barrier_arrive(keys_free + 8 * (used % STAGES));
            if (blocks == 1) mask();
            soften(score, most, total, shrink, scale);
            pack_weights(weight, score);
            for (int block = 1; block < blocks; block++) {
                u32 values = values_of(used), stage = used % STAGES, phase = used / STAGES % 2;
                used++;
                u32 keys = keys_of(used), next = used % STAGES;
                barrier_wait(keys_full + 8 * next, used / STAGES % 2);
                settle(score);
                settle(sum);
                begin_products();
                start_scores(score, queries, keys);
                barrier_wait(values_full + 8 * stage, phase);
                start_sums(sum, weight, values, block > 1);
                await_products<1>();
                settle(score);
                if (arrives) barrier_arrive(keys_free + 8 * next);
                if (block == blocks - 1) mask();
                soften(score, most, total, shrink, scale);
                follow(total[0] + total[1]);
                await_products<0>();
                settle(sum);
                if (arrives) barrier_arrive(values_free + 8 * stage);
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; i++) sum[i] *= shrink[i / 2 % 2];
                pack_weights(weight, score);
            }
            if (arrives) barrier_arrive(queries_free + 8 * (turn % 2));
            u32 values = values_of(used), stage = used % STAGES;
            barrier_wait(values_full + 8 * stage, used / STAGES % 2);
            settle(sum);
            begin_products();
            start_sums(sum, weight, values, blocks > 1);
            used++;
            Tile next = take_tile(turn + 1);
            start_tile(turn + 1, next.span.slot >= 0);
            await_products<1>();
            settle(sum);
            if (arrives) barrier_arrive(values_free + 8 * stage);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float all = total[h];
                all += __shfl_xor_sync(~0u, all, 1);
                all += __shfl_xor_sync(~0u, all, 2);
                float part = 1.0f / all;
                int own = row + 8 * h, place = tile.token + own / GROUP - tile.span.position;
                if (place < 0 || place >= tile.span.rows) continue;
                i64 head = i64(tile.span.first + place) * kv_heads * GROUP + tile.kv_head * GROUP + own % GROUP;
                u32* to = reinterpret_cast<u32*>(out + head * HEAD_DIM + lane % 4 * 2);
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 8; i++) {
                    to[i * 4] = pack_bf16(sum[4 * i + 2 * h] * part, sum[4 * i + 2 * h + 1] * part);
                }
                if (lse != nullptr && lane % 4 == 0) lse[head] = log_sum(most[h], scale, all);
            }
            tile = next;
        }
        await_products<0>();
    }
}

#endif
