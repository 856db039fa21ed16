// Lightning attention over spans of any length, for heads of any width up to 256, in f32 arithmetic on any device. A
// block takes some value channels of one head of one span, chunk by chunk.

#if ELEMENT_BYTES == 2
typedef bf16 element;
#else
typedef float element;
#endif

constexpr int THREADS = 256;
constexpr int COLUMNS = HEAD_DIM > 128 ? 16 : 64;
// Groups of threads that lie along the columns.
constexpr int GROUPS = THREADS / COLUMNS;
// Rows of the chunk whose outputs are computed at once, and those of one thread.
constexpr int STRIP = HEAD_DIM > 128 ? 8 : 16;
constexpr int SCORE_ROWS = STRIP / (THREADS / CHUNK);
constexpr int OUTPUT_ROWS = (STRIP + GROUPS - 1) / GROUPS;
// Key channels in whole vectors, and those of one thread in the update.
constexpr int CHANNELS = (HEAD_DIM + 3) / 4 * 4;
constexpr int UPDATE_ROWS = (CHANNELS + GROUPS * 4 - 1) / (GROUPS * 4) * 4;
// One vector more, so that the rows of a warp lie in different banks.
constexpr int KEY_STRIDE = CHANNELS + 4;

struct Shared {
    float keys[CHUNK][KEY_STRIDE];
    float queries[STRIP][CHANNELS];
    float values[CHUNK][COLUMNS];
    float state[CHANNELS][COLUMNS];
    float scores[STRIP][CHUNK];
    float decays[CHUNK + 1];
};

__device__ __forceinline__ float4 vector_at(const float* x) { return *reinterpret_cast<const float4*>(x); }

// Grid: blocks of value channels, heads, spans.
extern "C" __global__ void __launch_bounds__(THREADS) lightning_portable(
    const element* projected, i64 stride, const int4* spans, int rows, int slots, const float* powers, float* states,
    const element* tails, element* out
) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    Shared& s = *reinterpret_cast<Shared*>(dynamic_shared);
    const int thread = threadIdx.x, column = thread % COLUMNS, group = thread / COLUMNS;
    const int head = blockIdx.y, heads = gridDim.y;
    const int channel = blockIdx.x * COLUMNS + column;
    const bool inside = channel < HEAD_DIM;
    if (thread <= CHUNK) s.decays[thread] = powers[head * POWERS + thread];
    wait_for_previous();
    let_next_start();
    const Span span = span_at(Spans{spans, rows, slots}, blockIdx.z);
    if (span.slot < 0) return;
    const i64 cache = i64(span.slot) * heads + head;
    const element* batch = projected + head * 3 * HEAD_DIM;
    const element* tail_keys = tails + cache * 2 * CHUNK * HEAD_DIM;
    const element* tail_values = tail_keys + CHUNK * HEAD_DIM;
    float* saved = states + cache * HEAD_DIM * HEAD_DIM;
    const int first_chunk = span.position / CHUNK, last_chunk = (span.position + span.rows - 1) / CHUNK;

    for (int c = group; c < CHANNELS; c += GROUPS) {
        const bool present = first_chunk > 0 && inside && c < HEAD_DIM;
        s.state[c][column] = present ? saved[c * HEAD_DIM + channel] : 0.0f;
    }
    for (int chunk = first_chunk; chunk <= last_chunk; chunk++) {
        const int offset = chunk * CHUNK - span.position;
        const int begin = max(0, -offset), end = min(CHUNK, span.rows - offset);
        const element* source = batch + (i64(span.first) + offset) * stride;
        __syncthreads();
        for (int at = thread; at < end * CHANNELS; at += THREADS) {
            const int j = at / CHANNELS, c = at % CHANNELS;
            const element* from = j < begin ? tail_keys + j * HEAD_DIM : source + j * stride + HEAD_DIM;
            s.keys[j][c] = c < HEAD_DIM ? to_float(from[c]) : 0.0f;
        }
        for (int j = group; j < end; j += GROUPS) {
            const element* from = j < begin ? tail_values + j * HEAD_DIM : source + j * stride + 2 * HEAD_DIM;
            s.values[j][column] = inside ? to_float(from[channel]) : 0.0f;
        }

        for (int first = begin; first < end; first += STRIP) {
            __syncthreads();
            for (int at = thread; at < STRIP * CHANNELS; at += THREADS) {
                const int r = at / CHANNELS, c = at % CHANNELS;
                const bool present = first + r < end && c < HEAD_DIM;
                s.queries[r][c] = present ? to_float(source[(first + r) * stride + c]) : 0.0f;
            }
            __syncthreads();
            {
                const int j = thread % CHUNK, r = thread / CHUNK * SCORE_ROWS;
                float sums[SCORE_ROWS];
#pragma unroll
                for (int x = 0; x < SCORE_ROWS; x++) sums[x] = 0.0f;
                if (j < first + STRIP) {
                    for (int c = 0; c < CHANNELS; c += 4) {
                        const float4 key = vector_at(&s.keys[j][c]);
#pragma unroll
                        for (int x = 0; x < SCORE_ROWS; x++) {
                            const float4 query = vector_at(&s.queries[r + x][c]);
                            sums[x] += query.x * key.x;
                            sums[x] += query.y * key.y;
                            sums[x] += query.z * key.z;
                            sums[x] += query.w * key.w;
                        }
                    }
                }
#pragma unroll
                for (int x = 0; x < SCORE_ROWS; x++) {
                    const int i = first + r + x;
                    s.scores[r + x][j] = j <= i && i < CHUNK ? sums[x] * s.decays[i - j] : 0.0f;
                }
            }
            __syncthreads();
            const int r = group * OUTPUT_ROWS;
            if (r < STRIP) {
                float sums[OUTPUT_ROWS];
#pragma unroll
                for (int x = 0; x < OUTPUT_ROWS; x++) sums[x] = 0.0f;
                for (int c = 0; c < CHANNELS; c += 4) {
                    float state[4];
#pragma unroll
                    for (int y = 0; y < 4; y++) state[y] = s.state[c + y][column];
#pragma unroll
                    for (int x = 0; x < OUTPUT_ROWS; x++) {
                        const float4 query = vector_at(&s.queries[r + x][c]);
                        sums[x] += query.x * state[0];
                        sums[x] += query.y * state[1];
                        sums[x] += query.z * state[2];
                        sums[x] += query.w * state[3];
                    }
                }
                const int last = min(first + r + OUTPUT_ROWS, end);
#pragma unroll
                for (int x = 0; x < OUTPUT_ROWS; x++) sums[x] *= s.decays[min(first + r + x + 1, CHUNK)];
                for (int j = 0; j < last; j++) {
                    const float value = s.values[j][column];
#pragma unroll
                    for (int x = 0; x < OUTPUT_ROWS; x++) {
                        // Not a product with 0, which could change a sum's sign or be none.
                        if (j <= first + r + x) sums[x] += s.scores[r + x][j] * value;
                    }
                }
#pragma unroll
                for (int x = 0; x < OUTPUT_ROWS; x++) {
                    const int i = first + r + x;
                    if (i < end && inside) {
                        out[((i64(span.first) + offset + i) * heads + head) * HEAD_DIM + channel] =
                            from_float<element>(sums[x]);
                    }
                }
            }
        }

        if (end == CHUNK) {
            __syncthreads();
            const int c = group * UPDATE_ROWS;
            if (c < CHANNELS) {
                float state[UPDATE_ROWS];
#pragma unroll
                for (int x = 0; x < UPDATE_ROWS; x++) {
                    state[x] = c + x < CHANNELS ? s.state[c + x][column] * s.decays[CHUNK] : 0.0f;
                }
                for (int j = 0; j < CHUNK; j++) {
                    const float value = s.values[j][column] * s.decays[CHUNK - 1 - j];
#pragma unroll
                    for (int x = 0; x < UPDATE_ROWS; x += 4) {
                        if (c + x < CHANNELS) {
                            const float4 key = vector_at(&s.keys[j][c + x]);
                            state[x] += key.x * value;
                            state[x + 1] += key.y * value;
                            state[x + 2] += key.z * value;
                            state[x + 3] += key.w * value;
                        }
                    }
                }
#pragma unroll
                for (int x = 0; x < UPDATE_ROWS; x++) {
                    if (c + x < CHANNELS) s.state[c + x][column] = state[x];
                    if (c + x < HEAD_DIM && inside) saved[(c + x) * HEAD_DIM + channel] = state[x];
                }
            }
        }
    }
}

// Keeps the keys and values of the chunk that a span leaves unfinished. Grid: heads, spans.
extern "C" __global__ void __launch_bounds__(128) lightning_append(
    const element* projected, i64 stride, const int4* spans, int rows, int slots, element* tails
) {
    wait_for_previous();
    let_next_start();
    const Span span = span_at(Spans{spans, rows, slots}, blockIdx.y);
    if (span.slot < 0) return;
    const int head = blockIdx.x, heads = gridDim.x;
    const int end = span.position + span.rows, chunk = end / CHUNK * CHUNK, begin = max(chunk, span.position);
    element* keys = tails + (i64(span.slot) * heads + head) * 2 * CHUNK * HEAD_DIM;
    element* values = keys + CHUNK * HEAD_DIM;
    for (int at = threadIdx.x; at < (end - begin) * HEAD_DIM; at += 128) {
        const int position = begin + at / HEAD_DIM, c = at % HEAD_DIM;
        const element* row =
            projected + (i64(span.first) + position - span.position) * stride + (head * 3 + 1) * HEAD_DIM + c;
        keys[(position - chunk) * HEAD_DIM + c] = row[0];
        values[(position - chunk) * HEAD_DIM + c] = row[HEAD_DIM];
    }
}
