//! Which weights of a model flat values become.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{Activations, Buffer, Cuda, CudaError};
use crate::matmul::Element;
use crate::matmul::cuda::GATE_GROUP;

/// Values of a segment that one block takes.
pub(super) const SPAN: usize = 1 << 13;

/// Values that lie together and become rows of weights.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The first value.
    pub from: usize,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// The weight that the first value becomes.
    pub to: usize,
    /// Whether the rows of weights take turns with those of another matrix, [`GATE_GROUP`] of either at a time.
    pub in_turn: bool,
}

/// As `adamw.cu` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Segment {
    pub(super) begin: i64,
    pub(super) count: i64,
    pub(super) first_piece: i64,
    to: u64,
    /// Values before the first one that became weights of the same part.
    skipped: i64,
    run: i64,
    gap: i64,
    rounded: i64,
}

impl Segment {
    /// Values that become nothing.
    pub(super) fn of_values(values: Range<usize>) -> Self {
        let (begin, count) = (values.start as i64, values.len() as i64);
        Self { begin, count, first_piece: 0, to: 0, skipped: 0, run: 1, gap: 0, rounded: 0 }
    }

    pub(super) fn end(&self) -> i64 {
        self.begin + self.count
    }

    /// What of it lies within a range.
    pub(super) fn within(mut self, range: &Range<usize>) -> Self {
        let begin = self.begin.max(range.start as i64);
        let end = self.end().min(range.end as i64);
        self.skipped += begin - self.begin;
        (self.begin, self.count) = (begin, (end - begin).max(0));
        self
    }

    /// The piece after its last one.
    pub(super) fn last_piece(&self) -> i64 {
        self.first_piece + (self.count as usize).div_ceil(SPAN) as i64
    }
}

/// Weights of a model that values become, rounded where those are bf16. A value becomes one weight at most.
#[derive(Default)]
pub struct Weights<'a> {
    segments: Vec<Segment>,
    /// They are written through their addresses.
    buffers: PhantomData<&'a mut ()>,
}

impl<'a> Weights<'a> {
    /// Adds parts of one buffer, which must not overlap.
    ///
    /// # Panics
    /// When one reaches beyond the end of the buffer.
    pub fn add(&mut self, to: &'a mut Activations, parts: impl IntoIterator<Item = Part>) {
        let rounded = i64::from(to.element() == Element::Bf16);
        for Part { from, shape: [rows, columns], to: at, in_turn } in parts {
            if rows == 0 || columns == 0 {
                continue;
            }
            let between = if in_turn { (rows - 1) / GATE_GROUP * GATE_GROUP } else { 0 };
            assert!(at + (rows + between) * columns <= to.len(), "room for the weights");
            let group = (GATE_GROUP * columns) as i64;
            self.segments.push(Segment {
                begin: from as i64,
                count: (rows * columns) as i64,
                first_piece: 0,
                to: to.address(at),
                skipped: 0,
                run: group,
                gap: if in_turn { group } else { 0 },
                rounded,
            });
        }
    }

    /// Adds a vector, which is not rounded.
    pub fn add_vector(&mut self, to: &'a mut Buffer<f32>, from: usize) {
        if !to.is_empty() {
            let to_address = to.address(0);
            self.segments.push(Segment { to: to_address, ..Segment::of_values(from..from + to.len()) });
        }
    }

    /// In the order of values, with their pieces counted.
    ///
    /// # Panics
    /// When a value is to become two weights, or there are not so many values.
    pub(super) fn in_order(&self, values: usize) -> Vec<Segment> {
        let mut segments = self.segments.clone();
        segments.sort_by_key(|segment| segment.begin);
        count_pieces(&mut segments);
        for pair in segments.windows(2) {
            assert!(pair[0].end() <= pair[1].begin, "value {} becomes two weights", pair[1].begin);
        }
        let end = segments.last().map_or(0, Segment::end);
        assert!(end <= values as i64, "{values} values, and weights of {end}");
        segments
    }
}

/// Counts pieces through all segments, and gives their number.
pub(super) fn count_pieces(segments: &mut [Segment]) -> usize {
    let mut pieces = 0;
    for segment in segments {
        segment.first_piece = pieces;
        pieces = segment.last_piece();
    }
    pieces as usize
}

/// Segments on the device.
pub(super) struct Table {
    sent: Vec<Segment>,
    pub(super) on_device: Buffer<Segment>,
}

impl Table {
    pub(super) fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        Ok(Self { sent: Vec::new(), on_device: Buffer::zeroed(cuda, 0)? })
    }

    /// Brings segments to the device, unless they are there.
    pub(super) fn send(&mut self, segments: &[Segment]) -> Result<(), CudaError> {
        if self.sent == segments {
            return Ok(());
        }
        if self.on_device.len() < segments.len() {
            self.on_device = Buffer::zeroed(self.on_device.cuda(), segments.len())?;
        }
        self.on_device.write(0, segments)?;
        self.sent = segments.to_vec();
        Ok(())
    }
}
