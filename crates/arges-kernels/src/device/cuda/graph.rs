//! Captured sequences of kernels, and the time that things take.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaGraph, sys};

use super::{Cuda, CudaError};

/// Kernels captured once, which run again in one call.
pub struct Graph(CudaGraph);

// SAFETY: a graph is not used by two threads at once: replaying it needs `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Puts all its kernels into the stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn replay(&mut self) -> Result<(), CudaError> {
        self.0.launch().map_err(|e| CudaError::driver("replaying a graph", e))
    }
}

impl Cuda {
    /// Captures what `body` puts into the stream, without running it.
    ///
    /// # Errors
    /// Those of `body`, or when it did what cannot be captured, as waiting for the stream.
    pub fn capture(&self, body: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        let failed = |e| CudaError::driver("capturing a graph", e);
        // Kernels cannot be loaded meanwhile.
        self.ready()?;
        self.bind()?;
        self.stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed)?;
        let result = body();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed);
        result?;
        let graph = graph?.ok_or(CudaError::Unsupported("a graph of no kernels".to_owned()))?;
        graph.upload().map_err(failed)?;
        Ok(Graph(graph))
    }
}

/// Takes the time between two places in the stream, on the device's own clock.
pub struct Timer {
    cuda: Arc<Cuda>,
    begin: CudaEvent,
    end: CudaEvent,
}

impl Timer {
    /// A timer that has not been started.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        let event = || {
            cuda.context
                .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e| CudaError::driver("making an event", e))
        };
        Ok(Self { begin: event()?, end: event()?, cuda: Arc::clone(cuda) })
    }

    /// Marks the begin, once all kernels are compiled.
    ///
    /// # Errors
    /// When the driver fails, or a kernel does not compile.
    pub fn start(&self) -> Result<(), CudaError> {
        self.cuda.ready()?;
        self.begin.record(&self.cuda.stream).map_err(|e| CudaError::driver("recording an event", e))
    }

    /// Marks the end, waits for it and returns the seconds since the begin.
    ///
    /// # Errors
    /// When the driver fails, or a kernel in between.
    pub fn stop(&self) -> Result<f64, CudaError> {
        let failed = |e| CudaError::driver("timing kernels", e);
        self.end.record(&self.cuda.stream).map_err(failed)?;
        self.end.synchronize().map_err(failed)?;
        Ok(f64::from(self.begin.elapsed_ms(&self.end).map_err(failed)?) / 1e3)
    }
}
