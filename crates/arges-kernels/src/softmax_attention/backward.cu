// Gradients in bf16 on tensor cores that have no products of whole warpgroups. Compiled for HEAD_DIM 64 or 128 and a
// ROTARY_DIM that is a multiple of 16, besides what pages.cuh needs.

constexpr int WARPGROUPS = 2, THREADS = 128 * WARPGROUPS, STAGES = 3;
// Of the columns of a product, log-sum-exps and deltas.
constexpr int STATISTICS = 2 * PAGE * 4;

// Copies 4 bytes in the background; zeros where `present` is false.
__device__ __forceinline__ void copy_value(u32 shared, const float* global, bool present) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(present ? 4 : 0));
}

// Fetches query rows of a key-value head from `first` on: their queries and the gradients of their outputs.
template <int ROWS>
__device__ __forceinline__ void fetch_queries(const Gradients& g, Span span, int kv_head, int first, u32 queries, u32 dout) {
    const int piece = threadIdx.x % PIECES;
#pragma unroll
    for (int r = threadIdx.x / PIECES; r < ROWS; r += THREADS / PIECES) {
        const bool present = first + r < span.rows * GROUP;
        const QueryRow at = query_row(span, kv_head, present ? first + r : 0);
        const u32 to = piece_address(r / 64 * MATRIX, r % 64, piece);
        copy_async(queries + to, g.projected + at.row * g.stride + at.head * HEAD_DIM + piece * 8, present);
        const i64 head = at.row * g.kv_heads * GROUP + at.head;
        copy_async(dout + to, g.dout + head * HEAD_DIM + piece * 8, present);
    }
}

// Fetches keys and values of a page, zeros behind the span's last; none of a page that it does not have.
__device__ __forceinline__ void fetch_page(const Gradients& g, const Batch& batch, Span span, int kv_head, int index, u32 keys,
                                           u32 values) {
    const bool any = index * PAGE < span.rows;
    const int page = page_at(batch, span, any ? index : 0);
    const bf16* from = g.pages + head_page(page, g.kv_heads, kv_head);
#pragma unroll
    for (int i = threadIdx.x; i < PAGE * PIECES; i += THREADS) {
        const bool present = index * PAGE + i / 8 % PAGE < span.rows;
        copy_async(keys + i * 16, from + i * 8, present);
        copy_async(values + i * 16, from + HEAD_PAGE + i * 8, present);
    }
}

// A block has 128 query rows, 64 of each warpgroup, and passes over the pages.
extern "C" __global__ void __launch_bounds__(THREADS, 1) query_gradients(ARGUMENTS) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    constexpr int ROWS = 64 * WARPGROUPS;
    extern __shared__ char shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 all_queries = base, all_dout = base + WARPGROUPS * MATRIX, stages = all_dout + WARPGROUPS * MATRIX;
    wait_for_previous();
    let_next_start();
    const Work work = find_work(batch, kv_heads, [](Span span) { return (span.rows * GROUP + ROWS - 1) / ROWS; });
    const Span span = work.span;
    if (span.slot < 0) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, group = threadIdx.x / 128;
    // Late queries have the most keys: they go first, so that blocks end together.
    const int first = (work.count - 1 - work.place) * ROWS;
    const int last_page = min((first + ROWS - 1) / GROUP, span.rows - 1) / PAGE;
    const auto fetch = [&](int page) {
        const u32 keys = stages + page % STAGES * (2 * MATRIX);
        if (page <= last_page) fetch_page(g, batch, span, work.kv_head, page, keys, keys + MATRIX);
        commit_copies();
    };
    fetch_queries<ROWS>(g, span, work.kv_head, first, all_queries, all_dout);
    for (int page = 0; page < STAGES - 1; page++) fetch(page);

    const u32 queries = all_queries + group * MATRIX, own_dout = all_dout + group * MATRIX;
    const int own = first + group * 64 + warp * 16 + lane / 4;
    int token[2];
    float sum_log[2], dot[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int flat = own + 8 * h;
        const bool present = flat < span.rows * GROUP;
        const QueryRow at = query_row(span, work.kv_head, present ? flat : 0);
        const i64 head = at.row * kv_heads * GROUP + at.head;
        token[h] = flat / GROUP;
        sum_log[h] = present ? lse[head] * LOG2_E : 0.0f;
        dot[h] = present ? delta[head] : 0.0f;
    }
    const float scale2 = scale * LOG2_E;
    float sums[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;

    for (int page = 0; page <= last_page; page++) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(page + STAGES - 1);
        const u32 keys = stages + page % STAGES * (2 * MATRIX), values = keys + MATRIX;
        float weight[32], dscore[32];
        start_scores(weight, queries, keys);
        start_scores(dscore, own_dout, values);
        const bool masked = (page + 1) * PAGE - 1 > (first + group * 64) / GROUP;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int h = i / 2 % 2, key = page * PAGE + i / 4 * 8 + lane % 4 * 2 + i % 2;
            const float x = power_of_two(fmaf(weight[i], scale2, -sum_log[h]));
            weight[i] = masked && key > token[h] ? 0.0f : x;
        }
#pragma unroll
        for (int i = 0; i < 32; i++) dscore[i] = weight[i] * (dscore[i] - dot[i / 2 % 2]);
        u32 left[4][4];
        pack(left, dscore);
        start_sums(sums, left, keys);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int flat = own + 8 * h;
        if (flat >= span.rows * GROUP) continue;
        const QueryRow at = query_row(span, work.kv_head, flat);
        bf16* to = dprojected + at.row * stride + at.head * HEAD_DIM;
        store_row<true>(to, sums, h, scale, angles + at.row * ROTARY_DIM);
    }
}

// A block has two pages, one of each warpgroup, and passes over the query rows from their first token on.
extern "C" __global__ void __launch_bounds__(THREADS, 1) key_gradients(ARGUMENTS) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    constexpr int KEYS = PAGE * WARPGROUPS, STAGE = 2 * MATRIX;
    extern __shared__ char shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 stages = base + WARPGROUPS * 2 * MATRIX, all_statistics = stages + STAGES * STAGE;
    wait_for_previous();
    let_next_start();
    const Work work = find_work(batch, kv_heads, [](Span span) { return (span.rows + KEYS - 1) / KEYS; });
    const Span span = work.span;
    if (span.slot < 0) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, group = threadIdx.x / 128;
    const int first = work.place * KEYS * GROUP, end = span.rows * GROUP, count = (end - first + 63) / 64;
    const auto fetch = [&](int n) {
        if (n < count) {
            const u32 queries = stages + n % STAGES * STAGE;
            fetch_queries<64>(g, span, work.kv_head, first + n * 64, queries, queries + MATRIX);
            if (threadIdx.x < 128) {
                const int flat = first + n * 64 + threadIdx.x % 64;
                const QueryRow at = query_row(span, work.kv_head, min(flat, end - 1));
                const float* from = (threadIdx.x < 64 ? lse : delta) + at.row * kv_heads * GROUP + at.head;
                copy_value(all_statistics + n % STAGES * STATISTICS + threadIdx.x * 4, from, flat < end);
            }
        }
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < WARPGROUPS; i++) {
        const u32 keys = base + i * 2 * MATRIX;
        fetch_page(g, batch, span, work.kv_head, work.place * WARPGROUPS + i, keys, keys + MATRIX);
    }
    for (int n = 0; n < STAGES - 1; n++) fetch(n);

    const u32 keys = base + group * 2 * MATRIX, values = keys + MATRIX;
    const int first_key = work.place * KEYS + group * PAGE, own = first_key + warp * 16 + lane / 4;
    const float scale2 = scale * LOG2_E;
    float dkeys[HEAD_DIM / 2], dvalues[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) dkeys[i] = dvalues[i] = 0.0f;

    for (int n = 0; n < count; n++) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(n + STAGES - 1);
        const int row = first + n * 64;
        // Queries before the warpgroup's keys see none of them.
        if ((row + 63) / GROUP < first_key) continue;
        const u32 queries = stages + n % STAGES * STAGE, own_dout = queries + MATRIX;
        const u32 statistics = all_statistics + n % STAGES * STATISTICS + lane % 4 * 8;
        float weight[32], dscore[32];
        start_scores(weight, keys, queries);
        start_scores(dscore, values, own_dout);
        const bool masked = row / GROUP < first_key + PAGE - 1;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            float sum_log[2];
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(sum_log[0]), "=f"(sum_log[1]) : "r"(statistics + t * 32));
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++) {
                const int key = own + i / 2 % 2 * 8, token = (row + t * 8 + lane % 4 * 2 + i % 2) / GROUP;
                const float x = power_of_two(fmaf(weight[i], scale2, -LOG2_E * sum_log[i % 2]));
                weight[i] = masked && key > token ? 0.0f : x;
            }
        }
        u32 left[4][4];
        pack(left, weight);
        start_sums(dvalues, left, own_dout);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            float dot[2];
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(dot[0]), "=f"(dot[1]) : "r"(statistics + 256 + t * 32));
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++) dscore[i] = weight[i] * (dscore[i] - dot[i % 2]);
        }
        u32 dleft[4][4];
        pack(dleft, dscore);
        start_sums(dkeys, dleft, queries);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int token = own + 8 * h;
        if (token >= span.rows) continue;
        const i64 row = i64(span.first) + token;
        bf16* to = dprojected + row * stride + (kv_heads * GROUP + work.kv_head) * HEAD_DIM;
        store_row<true>(to, dkeys, h, scale, angles + row * ROTARY_DIM);
        store_row<false>(to + kv_heads * HEAD_DIM, dvalues, h, 1.0f, nullptr);
    }
}
