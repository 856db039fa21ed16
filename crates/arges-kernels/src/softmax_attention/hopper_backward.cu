// Gradients in bf16 with Hopper's warpgroup products. Compiled for HEAD_DIM 64 or 128, GROUP <= 64, a ROTARY_DIM that is a
// multiple of 16, and WGMMA = 1, besides what pages.cuh needs.
//
// A warpgroup multiplies a pair of matrices of its own, of 64 rows each, with pairs that pass by in shared memory: keys and
// values with tiles of queries and the gradients of their outputs, or the other way round. Of two warpgroups neither waits
// for the other: while one makes exponentials, the tensor cores have the other's products. And each has products of its own
// in flight meanwhile: those of a pair's gradients start before the sums of the pair before are awaited.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Never sleeps, as no weight is negative; but the assembler does not move a wait for products in front of it, and so not
// in front of the exponentials that are to run beside them.
__device__ __forceinline__ void follow(const float (&weight)[32]) {
    u32 any = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) any |= __float_as_uint(weight[i]);
    asm volatile("{.reg .pred p; setp.lt.s32 p, %0, 0; @p nanosleep.u32 1;}" ::"r"(any) : "memory");
}

// A warpgroup's 64 rows in shared memory as left operands.
__device__ __forceinline__ void load_rows(u32 (&left)[STEPS][4], u32 rows) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_tiles(left[step], piece_address(rows, row, step * 2 + lane / 16));
}

// A warpgroup's part of a task of keys, from use `use` of stages on.
__device__ __forceinline__ void key_gradients(const Block& block, const Gradients& g, float scale, const Task& task,
                                              int group, u32& use) {
    const int lane = threadIdx.x % 32, own_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const u32 keys = uniform(block.own(group)), values = keys + MATRIX, end = use + Stream(task).count;
    const int first_key = task.place * KEYS + group * PAGE;
    // Queries before the warpgroup's keys see none of them.
    const int first = first_key < task.span.rows ? Stream(task).first : -1, last = first_key / TOKENS;
    float dkeys[HEAD_DIM / 2], dvalues[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) dkeys[i] = dvalues[i] = 0.0f;
#pragma unroll 1
    for (int tile = first; tile >= last; tile--, use++) {
        const u32 queries = uniform(block.stage(use)), dout = queries + MATRIX;
        const auto& statistics = block.shared.of_stage[use % STAGES];
        float weight[32], dscore[32];
        block.await_full(use);
        begin_products();
        start_scores(weight, keys, queries);
        await_products<1>();
        settle(dkeys);
        settle(dvalues);
        if (tile != first) arrive_once(block.empty(use - 1));
        begin_products();
        start_scores(dscore, values, dout);
        await_products<1>();
        settle(weight);
        if (tile * TOKENS < first_key + PAGE - 1) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = first_key + own_row + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > tile * TOKENS + column / GROUP) weight[i] = MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const float2 exponent = *reinterpret_cast<const float2*>(&statistics[0][t * 8 + lane % 4 * 2]);
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++)
                weight[i] = power_of_two(fmaf(weight[i], scale * LOG2_E, i % 2 ? exponent.y : exponent.x));
        }
        u32 left[4][4];
        pack(left, weight);
        follow(weight);
        await_products<0>();
        settle(dscore);
        begin_products();
        start_sums(dvalues, left, dout);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const float2 dot = *reinterpret_cast<const float2*>(&statistics[1][t * 8 + lane % 4 * 2]);
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++) dscore[i] = weight[i] * (dscore[i] - (i % 2 ? dot.y : dot.x));
        }
        u32 dleft[4][4];
        pack(dleft, dscore);
        begin_products();
        start_sums(dkeys, dleft, queries);
    }
    await_products<0>();
    settle(dkeys);
    settle(dvalues);
    if (first >= last) arrive_once(block.empty(use - 1));
    for (; use < end; use++) {
        block.await_full(use);
        arrive_once(block.empty(use));
    }
    arrive_once(block.own_empty());
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int token = first_key + own_row + 8 * h;
        if (token >= task.span.rows) continue;
        const i64 row = i64(task.span.first) + token;
        bf16* to = g.dprojected + row * g.stride + (g.kv_heads * GROUP + task.kv_head) * HEAD_DIM;
        store_row<true>(to, dkeys, h, scale, g.angles + row * ROTARY_DIM);
        store_row<false>(to + g.kv_heads * HEAD_DIM, dvalues, h, 1.0f, nullptr);
    }
}

// Whether the left operands of a task of queries stay in registers, from where the tensor cores have them sooner; the
// warpgroup's pair is then free for the next task from the start. With fewer channels, NVRTC 13.0 takes registers that
// hold them for the weights of a page.
constexpr bool KEEPS_ROWS = HEAD_DIM == 128;

// The same of a task of queries.
__device__ __forceinline__ void query_gradients(const Block& block, const Gradients& g, float scale, const Task& task,
                                                int group, u32& use) {
    const int lane = threadIdx.x % 32, own_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const u32 end = use + Stream(task).count;
    const int first_token = (task.place * 2 + group) * TOKENS;
    const int pages = min(Stream(task).count, (first_token + TOKENS - 1) / PAGE + 1);
    const u32 own = uniform(block.own(group));
    u32 queries[STEPS][4], dout[STEPS][4];
    if constexpr (KEEPS_ROWS) {
        load_rows(queries, own);
        load_rows(dout, own + MATRIX);
    }
    float exponent[2], dot[2], sums[HEAD_DIM / 2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        exponent[h] = block.shared.of_own[group][0][own_row + 8 * h];
        dot[h] = block.shared.of_own[group][1][own_row + 8 * h];
    }
    __syncwarp();
    if (KEEPS_ROWS) arrive_once(block.own_empty());
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;
#pragma unroll 1
    for (int page = 0; page < pages; page++, use++) {
        const u32 keys = uniform(block.stage(use)), values = keys + MATRIX;
        float weight[32], dscore[32];
        block.await_full(use);
        begin_products();
        if constexpr (KEEPS_ROWS) {
            start_scores(weight, queries, keys);
            start_scores(dscore, dout, values);
        } else {
            start_scores(weight, own, keys);
            start_scores(dscore, own + MATRIX, values);
        }
        await_products<2>();
        settle(sums);
        if (page > 0) arrive_once(block.empty(use - 1));
        await_products<1>();
        settle(weight);
        if ((page + 1) * PAGE - 1 > first_token) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = page * PAGE + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > first_token + (own_row + i / 2 % 2 * 8) / GROUP) weight[i] = MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int i = 0; i < 32; i++) weight[i] = power_of_two(fmaf(weight[i], scale * LOG2_E, exponent[i / 2 % 2]));
        follow(weight);
        await_products<0>();
        settle(dscore);
#pragma unroll
        for (int i = 0; i < 32; i++) dscore[i] = weight[i] * (dscore[i] - dot[i / 2 % 2]);
        u32 left[4][4];
        pack(left, dscore);
        begin_products();
        start_sums(sums, left, keys);
    }
    await_products<0>();
    settle(sums);
    arrive_once(block.empty(use - 1));
    for (; use < end; use++) {
        block.await_full(use);
        arrive_once(block.empty(use));
    }
    if (!KEEPS_ROWS) arrive_once(block.own_empty());
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = own_row + 8 * h, token = first_token + r / GROUP;
        if (r >= TILE_ROWS || token >= task.span.rows) continue;
        const i64 row = i64(task.span.first) + token;
        bf16* to = g.dprojected + row * g.stride + (task.kv_head * GROUP + r % GROUP) * HEAD_DIM;
        store_row<true>(to, sums, h, scale, g.angles + row * ROTARY_DIM);
    }
}

// The maps are of the heads of `projected` and `dout`, copied in tiles. One block a multiprocessor; `drawn` is 0 before and
// after.
extern "C" __global__ void __launch_bounds__(384, 1)
gradients(ARGUMENTS, const __grid_constant__ TensorMap queries_map, const __grid_constant__ TensorMap dout_map, int* drawn) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    extern __shared__ char matrices[];
    __shared__ Shared shared;
    const Block block = {shared, (shared_address(matrices) + 1023) & ~1023u};
    const int warp = threadIdx.x / 32, group = warp / 4 - 1;
    if (threadIdx.x == 0) block.init();
    // Rows that no tile has: nothing comes there before the last task of keys.
    if (TILE_ROWS < 64 && warp < STAGES) clear_rows(block.stage(warp), TILE_ROWS);
    __syncthreads();
    wait_for_previous();
    let_next_start();
    if (warp < 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (warp == 0) fill_matrices(block, g, batch, queries_map, dout_map, drawn);
        else if (warp == 1) fill_statistics(block, g);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        u32 use = 0, turn = 0;
        const auto take = [&](Kind kind, auto body) {
#pragma unroll 1
            for (;; turn++) {
                const Task& task = block.task(turn);
                if (task.kind != kind) break;
                block.await_own(turn);
                body(task);
            }
        };
        // One kind after the other, as they come: together they would need too many registers.
        take(OF_KEYS, [&](const Task& task) { key_gradients(block, g, scale, task, group, use); });
        take(OF_QUERIES, [&](const Task& task) { query_gradients(block, g, scale, task, group, use); });
    }
}

#endif
