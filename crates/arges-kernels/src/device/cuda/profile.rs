//! Where the time of a step goes: the device's own clock before and after every kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaEvent, sys};

use super::{Cuda, CudaError};

/// Kernels that were timed, while a profile is taken.
#[derive(Default)]
pub(super) struct Profiler(Mutex<Option<Vec<Launch>>>);

struct Launch {
    name: Arc<str>,
    begin: CudaEvent,
    end: CudaEvent,
}

/// What one kernel took in all.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Its source and its name there.
    pub name: String,
    /// How often it ran.
    pub calls: usize,
    /// Seconds of all calls.
    pub seconds: f64,
}

/// Records the end of a launch when it is dropped.
pub(super) struct TimedLaunch<'a>(Option<&'a Cuda>);

impl Cuda {
    /// Runs `body` and tells how long each kernel took that it put into the stream, the longest first. Kernels run one
    /// after the other then, without overlap, and each time has an event's cost of a microsecond or two in it. Graphs
    /// are not looked into.
    ///
    /// # Errors
    /// Those of `body`, and of the kernels.
    pub fn profile<E: From<CudaError>>(
        &self,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Vec<KernelTime>, E> {
        *self.launches() = Some(Vec::new());
        let result = body();
        let launches = self.launches().take().unwrap_or_default();
        result?;
        self.synchronize()?;
        let mut totals: HashMap<Arc<str>, (usize, f64)> = HashMap::new();
        for Launch { name, begin, end } in launches {
            let milliseconds = begin.elapsed_ms(&end).map_err(|e| CudaError::driver("timing a kernel", e))?;
            let total = totals.entry(name).or_default();
            *total = (total.0 + 1, total.1 + f64::from(milliseconds) / 1e3);
        }
        let times = totals.into_iter();
        let mut times: Vec<KernelTime> = times
            .map(|(name, (calls, seconds))| KernelTime { name: name.to_string(), calls, seconds })
            .collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(times)
    }

    /// Whether a profile is being taken.
    pub fn is_profiling(&self) -> bool {
        self.launches().is_some()
    }

    fn launches(&self) -> std::sync::MutexGuard<'_, Option<Vec<Launch>>> {
        self.profiler.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a kernel begins, and with what it returns, that it ends.
    pub(super) fn profile_launch(&self, name: &Arc<str>) -> Result<TimedLaunch<'_>, CudaError> {
        let mut launches = self.launches();
        let Some(launches) = launches.as_mut() else { return Ok(TimedLaunch(None)) };
        let event = || {
            self.context
                .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e| CudaError::driver("making an event", e))
        };
        let launch = Launch { name: Arc::clone(name), begin: event()?, end: event()? };
        launch.begin.record(&self.stream).map_err(|e| CudaError::driver("recording an event", e))?;
        launches.push(launch);
        Ok(TimedLaunch(Some(self)))
    }
}

impl Drop for TimedLaunch<'_> {
    fn drop(&mut self) {
        if let Some(cuda) = self.0
            && let Some(launch) = cuda.launches().as_ref().and_then(|launches| launches.last())
        {
            // An event that cannot be recorded is told of when its time is asked for.
            let _ = launch.end.record(&cuda.stream);
        }
    }
}
