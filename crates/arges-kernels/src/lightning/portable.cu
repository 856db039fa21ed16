// The recurrence over chunks for heads of any width up to 256, in f32 arithmetic on any device (chunks.cuh says what it
// gives besides the outputs). A block takes some value channels of one head of one span, chunk by chunk.

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

__device__ __forceinline__ float silu_derivative(float x) {
    const float gate = sigmoid(x);
    return gate + x * gate * (1.0f - gate);
}

// The channels of a head in rows of a batch.
template <typename T> struct Rows {
    T* at;
    i64 stride;
};

// With REVERSED time runs backwards, over whole sequences: key j weighs for queries i <= j. Where `saved` is not null, the
// state goes on from and to it, and the tail has the rows of the first chunk that the span does not. Where `before_silu`,
// laid out as the output, is not null, outputs are gradients, which go through SiLU.
template <bool REVERSED>
__device__ __forceinline__ void attend(
    Shared& s, Span span, Rows<const element> queries, Rows<const element> keys, Rows<const element> values,
    const element* tail_keys, const element* tail_values, float* saved, Rows<element> out,
    const element* before_silu = nullptr
) {
    const int thread = threadIdx.x, column = thread % COLUMNS, group = thread / COLUMNS;
    const int channel = blockIdx.x * COLUMNS + column;
    const bool inside = channel < HEAD_DIM;
    const int first_chunk = span.position / CHUNK, last_chunk = (span.position + span.rows - 1) / CHUNK;

    for (int c = group; c < CHANNELS; c += GROUPS) {
        const bool present = saved != nullptr && first_chunk > 0 && inside && c < HEAD_DIM;
        s.state[c][column] = present ? saved[c * HEAD_DIM + channel] : 0.0f;
    }
    for (int n = 0; n <= last_chunk - first_chunk; n++) {
        const int chunk = REVERSED ? last_chunk - n : first_chunk + n;
        const int offset = chunk * CHUNK - span.position;
        const int begin = max(0, -offset), end = min(CHUNK, span.rows - offset);
        const i64 row = i64(span.first) + offset;
        __syncthreads();
        for (int at = thread; at < end * CHANNELS; at += THREADS) {
            const int j = at / CHANNELS, c = at % CHANNELS;
            const element* from = j < begin ? tail_keys + j * HEAD_DIM : keys.at + (row + j) * keys.stride;
            s.keys[j][c] = c < HEAD_DIM ? to_float(from[c]) : 0.0f;
        }
        for (int j = group; j < end; j += GROUPS) {
            const element* from = j < begin ? tail_values + j * HEAD_DIM : values.at + (row + j) * values.stride;
            s.values[j][column] = inside ? to_float(from[channel]) : 0.0f;
        }

        for (int first = begin; first < end; first += STRIP) {
            __syncthreads();
            for (int at = thread; at < STRIP * CHANNELS; at += THREADS) {
                const int r = at / CHANNELS, c = at % CHANNELS;
                const bool present = first + r < end && c < HEAD_DIM;
                s.queries[r][c] = present ? to_float(queries.at[(row + first + r) * queries.stride + c]) : 0.0f;
            }
            __syncthreads();
            {
                const int j = thread % CHUNK, r = thread / CHUNK * SCORE_ROWS;
                float sums[SCORE_ROWS];
#pragma unroll
                for (int x = 0; x < SCORE_ROWS; x++) sums[x] = 0.0f;
                if (REVERSED ? j >= first && j < end : j < first + STRIP) {
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
                    const int distance = REVERSED ? j - i : i - j;
                    s.scores[r + x][j] = distance >= 0 && i < CHUNK ? sums[x] * s.decays[distance] : 0.0f;
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
                for (int x = 0; x < OUTPUT_ROWS; x++) {
                    const int i = first + r + x;
                    sums[x] *= s.decays[REVERSED ? max(CHUNK - 1 - i, 0) : min(i + 1, CHUNK)];
                }
                for (int j = REVERSED ? first + r : 0; j < (REVERSED ? end : last); j++) {
                    const float value = s.values[j][column];
#pragma unroll
                    for (int x = 0; x < OUTPUT_ROWS; x++) {
                        // Not a product with 0, which could change a sum's sign or be none.
                        if (REVERSED ? j >= first + r + x : j <= first + r + x) sums[x] += s.scores[r + x][j] * value;
                    }
                }
#pragma unroll
                for (int x = 0; x < OUTPUT_ROWS; x++) {
                    const int i = first + r + x;
                    if (i >= end || !inside) continue;
                    const i64 at = (row + i) * out.stride + channel;
                    if (before_silu != nullptr) sums[x] *= silu_derivative(to_float(before_silu[at]));
                    out.at[at] = from_float<element>(sums[x]);
                }
            }
        }

        if (REVERSED || end == CHUNK) {
            __syncthreads();
            const int c = group * UPDATE_ROWS;
            if (c < CHANNELS) {
                float state[UPDATE_ROWS];
#pragma unroll
                for (int x = 0; x < UPDATE_ROWS; x++) {
                    state[x] = c + x < CHANNELS ? s.state[c + x][column] * s.decays[CHUNK] : 0.0f;
                }
                for (int j = 0; j < (REVERSED ? end : CHUNK); j++) {
                    const float value = s.values[j][column] * s.decays[REVERSED ? j + 1 : CHUNK - 1 - j];
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
                    if (saved != nullptr && c + x < HEAD_DIM && inside) saved[(c + x) * HEAD_DIM + channel] = state[x];
                }
            }
        }
    }
}

// Grid: blocks of value channels, heads, spans.
extern "C" __global__ void __launch_bounds__(THREADS) lightning_portable(
    const element* projected, i64 stride, const int4* spans, int rows, int slots, const float* powers, float* states,
    const element* tails, element* out
) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    Shared& s = *reinterpret_cast<Shared*>(dynamic_shared);
    const int head = blockIdx.y, heads = gridDim.y;
    if (threadIdx.x <= CHUNK) s.decays[threadIdx.x] = powers[head * POWERS + threadIdx.x];
    wait_for_previous();
    let_next_start();
    const Span span = span_at(Spans{spans, rows, slots}, blockIdx.z);
    if (span.slot < 0) return;
    const i64 cache = i64(span.slot) * heads + head;
    const auto input = [&](int part) { return Rows<const element>{projected + (head * 3 + part) * HEAD_DIM, stride}; };
    const element* tail = tails + cache * 2 * CHUNK * HEAD_DIM;
    attend<false>(s, span, input(0), input(1), input(2), tail, tail + CHUNK * HEAD_DIM,
                  states + cache * HEAD_DIM * HEAD_DIM,
                  Rows<element>{out + head * HEAD_DIM, i64(heads) * HEAD_DIM});
}

// The gradients, as backward.cu says. Grid: blocks of channels, heads times the three gradients, spans.
extern "C" __global__ void __launch_bounds__(THREADS) lightning_portable_backward(
    const element* projected, const element* before_silu, i64 stride, const element* dout, const int4* spans, int rows,
    const float* powers, element* dprojected
) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    Shared& s = *reinterpret_cast<Shared*>(dynamic_shared);
    const int head = blockIdx.y / 3, gradient = blockIdx.y % 3, heads = gridDim.y / 3;
    if (threadIdx.x <= CHUNK) s.decays[threadIdx.x] = powers[head * POWERS + threadIdx.x];
    wait_for_previous();
    let_next_start();
    const Span span = whole_span_at(spans, rows, blockIdx.z);
    if (span.rows == 0) return;
    const auto input = [&](int part) { return Rows<const element>{projected + (head * 3 + part) * HEAD_DIM, stride}; };
    const Rows<const element> gradients = {dout + head * HEAD_DIM, i64(heads) * HEAD_DIM};
    const int own = (head * 3 + gradient) * HEAD_DIM;
    const Rows<element> out = {dprojected + own, stride};
    if (before_silu != nullptr) before_silu += own;
    if (gradient == 0) {
        attend<false>(s, span, gradients, input(2), input(1), nullptr, nullptr, nullptr, out, before_silu);
    } else if (gradient == 1) {
        attend<true>(s, span, input(2), gradients, input(0), nullptr, nullptr, nullptr, out, before_silu);
    } else {
        attend<true>(s, span, input(1), input(0), gradients, nullptr, nullptr, nullptr, out, before_silu);
    }
}

// Values that a thread moves together where rows begin at multiples of 16 bytes.
struct __align__(16) Vector {
    element at[16 / sizeof(element)];
};

// SiLU of the first `width` values of each row. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS) lightning_activate(
    const element* x, i64 stride, int width, element* activated
) {
    constexpr int TOGETHER = sizeof(Vector) / sizeof(element);
    wait_for_previous();
    let_next_start();
    x += blockIdx.x * stride;
    activated += blockIdx.x * stride;
    if (width % TOGETHER == 0 && stride % TOGETHER == 0) {
        for (int c = threadIdx.x * TOGETHER; c < width; c += THREADS * TOGETHER) {
            Vector y = *reinterpret_cast<const Vector*>(x + c);
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) y.at[i] = from_float<element>(silu(to_float(y.at[i])));
            *reinterpret_cast<Vector*>(activated + c) = y;
        }
    } else {
        for (int c = threadIdx.x; c < width; c += THREADS) activated[c] = from_float<element>(silu(to_float(x[c])));
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
