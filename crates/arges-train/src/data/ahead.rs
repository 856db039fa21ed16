//! Batches made on a thread of their own, while the ones before are trained on.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::DataError;
use super::packing::{PackedBatch, Stream, StreamState};

/// Batches that wait. Making one takes longer where records are long, and then the next few.
const WAITING: usize = 8;

type Made = Result<(PackedBatch, StreamState), DataError>;

/// The batches of a [`Stream`], made ahead.
pub struct BatchesAhead {
    made: Receiver<Made>,
    state: StreamState,
}

impl BatchesAhead {
    /// Begins to make batches. The thread ends when this is dropped, or with the first error.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(mut stream: Stream) -> Result<Self, DataError> {
        let state = stream.state();
        let (send, made) = sync_channel(WAITING);
        let make = move || {
            loop {
                let next = stream.next_batch().map(|batch| (batch, stream.state()));
                let failed = next.is_err();
                if send.send(next).is_err() || failed {
                    return;
                }
            }
        };
        thread::Builder::new().name("batches".to_owned()).spawn(make).map_err(DataError::Thread)?;
        Ok(Self { made, state })
    }

    /// The next batch; see [`Stream::next_batch`].
    ///
    /// # Errors
    /// A record that cannot be read or encoded. After it there are no more batches.
    pub fn next_batch(&mut self) -> Result<PackedBatch, DataError> {
        let (batch, state) = self.made.recv().unwrap_or(Err(DataError::Ended))?;
        self.state = state;
        Ok(batch)
    }

    /// Where the stream is after the batches that were given out, whatever was made beyond them.
    pub fn state(&self) -> StreamState {
        self.state.clone()
    }
}
