// Attention of one row a span, split over its keys. Compiled for GROUP <= 16, besides what pages.cuh needs.

constexpr int THREADS = 128, WARPS = 4, STAGES = 3;
constexpr int HEAD_PAGE_BYTES = HEAD_PAGE * 2;
constexpr int STAGE_BYTES = 2 * HEAD_PAGE_BYTES;
constexpr int STEPS = HEAD_DIM / 16;  // of a product over channels
constexpr int HALVES = GROUP > 8 ? 2 : 1; // of the 16 rows of a tile that have query heads
constexpr float NONE = -3.0e38f;

// Adds up what `count` parts summed for one row: each has a maximum, a total and HEAD_DIM sums relative to its maximum.
struct Merge {
    float most, total;
};

__device__ __forceinline__ Merge merge_totals(const float* most, const float* total, int count, int pitch) {
    Merge merged = {NONE, 0.0f};
    for (int i = 0; i < count; i++) merged.most = fmaxf(merged.most, most[i * pitch]);
    for (int i = 0; i < count; i++) merged.total += total[i * pitch] * exp2f(most[i * pitch] - merged.most);
    return merged;
}

// out [rows, heads * HEAD_DIM] for the single row of each span, whose pages are shared out evenly to gridDim.y blocks.
// With several, the last of them adds up: `sums [spans, kv_heads, splits, GROUP, HEAD_DIM]`, `totals [spans, kv_heads,
// splits, 2, GROUP]` (maxima and totals), `arrived [spans, kv_heads]` zero before and after.
// Grid: (kv_heads, splits, spans). `scale` is in units of log 2.
extern "C" __global__ void __launch_bounds__(THREADS)
decode(const Span* spans, int span_count, int rows, const int* tables, int table_stride, int slots, int page_count,
       int kv_heads, const bf16* projected, i64 stride, const bf16* pages, float scale, bf16* out, float* sums,
       float* totals, u32* arrived) {
    Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    extern __shared__ __align__(128) char shared[];
    wait_for_previous();
    let_next_start();
    Span span = span_at(batch, blockIdx.z);
    if (span.slot < 0) return;
    int kv_head = blockIdx.x, split = blockIdx.y, splits = gridDim.y;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    i64 held = span.position / PAGE + 1;
    int first_page = int(held * split / splits), end_page = int(held * (split + 1) / splits);
    u32 base = shared_address(shared);

    auto load = [&](int stage, int page) {
        const char* from = reinterpret_cast<const char*>(pages + head_page(page, kv_heads, kv_head));
        u32 to = base + stage * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < STAGE_BYTES / (THREADS * 16); i++) {
            int at = (i * THREADS + threadIdx.x) * 16;
            copy_async(to + at, from + at, true);
        }
    };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (first_page + stage < end_page) load(stage, page_at(batch, span, first_page + stage));
        commit_copies();
    }
    int next = first_page + STAGES - 1;
    int next_page = next < end_page ? page_at(batch, span, next) : 0;

    // Rows of a tile are the query heads of the key-value head.
    u32 query[STEPS][4];
    const bf16* queries = projected + i64(span.first) * stride + i64(kv_head) * GROUP * HEAD_DIM;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i % 2 * 8, channel = step * 16 + i / 2 * 8 + lane % 4 * 2;
            query[step][i] =
                row < GROUP ? *reinterpret_cast<const u32*>(queries + row * HEAD_DIM + channel) : 0;
        }
    }
    float most[HALVES], total[HALVES], sum[PIECES][4];
#pragma unroll
    for (int h = 0; h < HALVES; h++) most[h] = NONE, total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; i++) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;

    // A warp has 16 keys of every page.
    int stage = 0;
    for (int p = first_page; p < end_page; p++) {
        await_copies<STAGES - 2>();
        __syncthreads();
        int ahead = p + STAGES - 1;
        if (ahead < end_page) {
            load(stage == 0 ? STAGES - 1 : stage - 1, next_page);
            if (ahead + 1 < end_page) next_page = page_at(batch, span, ahead + 1);
        }
        commit_copies();

        u32 keys = base + stage * STAGE_BYTES, values = keys + HEAD_PAGE_BYTES;
        float score[2][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 tiles[4];
            load_tiles(tiles, piece_address(keys, warp * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
            mma_bf16(score[0], query[step], tiles[0], tiles[1]);
            mma_bf16(score[1], query[step], tiles[2], tiles[3]);
        }
        int key = p * PAGE + warp * 16 + lane % 4 * 2;
        u32 weight[4] = {0, 0, 0, 0};
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            float now = most[h];
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = score[i / 2][2 * h + i % 2] * scale;
                if (key + i / 2 * 8 + i % 2 > span.position) x[i] = __int_as_float(0xff800000);
                now = fmaxf(now, x[i]);
            }
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
            float shrink = exp2f(most[h] - now);
            most[h] = now;
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = exp2f(x[i] - now);
            total[h] = total[h] * shrink + ((x[0] + x[1]) + (x[2] + x[3]));
            weight[h] = pack_bf16(x[0], x[1]);
            weight[h + 2] = pack_bf16(x[2], x[3]);
#pragma unroll
            for (int i = 0; i < PIECES; i++) sum[i][2 * h] *= shrink, sum[i][2 * h + 1] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < PIECES; i += 2) {
            u32 tiles[4];
            load_tiles_transposed(
                tiles, piece_address(values, warp * 16 + lane / 8 % 2 * 8 + lane % 8, i + lane / 16));
            mma_bf16(sum[i], weight, tiles[0], tiles[1]);
            mma_bf16(sum[i + 1], weight, tiles[2], tiles[3]);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    await_copies<0>();
    __syncthreads();

    // The warps' sums meet in shared memory: [WARPS, GROUP, HEAD_DIM], then maxima and totals [WARPS, 2, GROUP].
    float* warp_sums = reinterpret_cast<float*>(shared);
    float* warp_totals = warp_sums + WARPS * GROUP * HEAD_DIM;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        float all = total[h];
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        int row = h * 8 + lane / 4;
        if (row < GROUP) {
            if (lane % 4 == 0) {
                warp_totals[warp * 2 * GROUP + row] = most[h];
                warp_totals[warp * 2 * GROUP + GROUP + row] = all;
            }
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                float2 pair = make_float2(sum[i][2 * h], sum[i][2 * h + 1]);
                *reinterpret_cast<float2*>(warp_sums + (warp * GROUP + row) * HEAD_DIM + i * 8 + lane % 4 * 2) = pair;
            }
        }
    }
    __syncthreads();
    i64 head = i64(blockIdx.z) * kv_heads + kv_head;
    bf16* own_out = out + (i64(span.first) * kv_heads + kv_head) * GROUP * HEAD_DIM;
    float* own_sums = sums + (head * splits + split) * GROUP * HEAD_DIM;
    float* own_totals = totals + (head * splits + split) * 2 * GROUP;
    for (int i = threadIdx.x * 2; i < GROUP * HEAD_DIM; i += THREADS * 2) {
        int row = i / HEAD_DIM;
        Merge merged = merge_totals(warp_totals + row, warp_totals + GROUP + row, WARPS, 2 * GROUP);
        float a = 0.0f, b = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float part = exp2f(warp_totals[w * 2 * GROUP + row] - merged.most);
            a += warp_sums[w * GROUP * HEAD_DIM + i] * part;
            b += warp_sums[w * GROUP * HEAD_DIM + i + 1] * part;
        }
        if (splits == 1) {
            *reinterpret_cast<u32*>(own_out + i) = pack_bf16(a / merged.total, b / merged.total);
        } else {
            *reinterpret_cast<float2*>(own_sums + i) = make_float2(a, b);
            if (i % HEAD_DIM == 0) own_totals[row] = merged.most, own_totals[GROUP + row] = merged.total;
        }
    }
    if (splits == 1) return;

    __shared__ u32 before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicAdd(arrived + head, 1u);
    __syncthreads();
    if (before != u32(splits - 1)) return;
    __threadfence();
    if (threadIdx.x == 0) arrived[head] = 0;
    const float* all_sums = sums + head * splits * GROUP * HEAD_DIM;
    const float* all_totals = totals + head * splits * 2 * GROUP;
    // What each split counts for, [GROUP, splits].
    float* parts = reinterpret_cast<float*>(shared);
    for (int row = warp; row < GROUP; row += WARPS) {
        float row_most = NONE, row_total = 0.0f;
        for (int s = lane; s < splits; s += 32) row_most = fmaxf(row_most, __ldcg(all_totals + s * 2 * GROUP + row));
        row_most = warp_max(row_most);
        for (int s = lane; s < splits; s += 32) {
            float part = exp2f(__ldcg(all_totals + s * 2 * GROUP + row) - row_most);
            row_total += part * __ldcg(all_totals + s * 2 * GROUP + GROUP + row);
            parts[row * splits + s] = part;
        }
        row_total = warp_sum(row_total);
        __syncwarp();
        for (int s = lane; s < splits; s += 32) parts[row * splits + s] /= row_total;
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < GROUP * HEAD_DIM; i += THREADS * 4) {
        const float* row_parts = parts + i / HEAD_DIM * splits;
        float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (int s = 0; s < splits; s++) {
            float4 x = __ldcg(reinterpret_cast<const float4*>(all_sums + i64(s) * GROUP * HEAD_DIM + i));
            float part = row_parts[s];
            all.x = fmaf(x.x, part, all.x);
            all.y = fmaf(x.y, part, all.y);
            all.z = fmaf(x.z, part, all.z);
            all.w = fmaf(x.w, part, all.w);
        }
        uint2 packed = make_uint2(pack_bf16(all.x, all.y), pack_bf16(all.z, all.w));
        *reinterpret_cast<uint2*>(own_out + i) = packed;
    }
}
