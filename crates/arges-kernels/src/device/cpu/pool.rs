//! A thread pool for short parallel loops.
//!
//! A loop's tasks are handed out one by one from a shared counter, so that a slow core takes fewer. Workers
//! that find nothing wait a moment, because the next loop of a decode step follows at once, and then sleep: an
//! idle model costs no CPU. Nothing is allocated by a loop.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of waiting before a thread sleeps: about a tenth of a millisecond, a few times what waking it costs.
const SPINS: usize = 4_000;
/// Low bits of `Shared::next` that hold the next task; those above hold the number of the loop.
const TASK_BITS: u32 = 24;
const MAX_TASKS: usize = (1 << TASK_BITS) - 1;

type Call = unsafe fn(*const (), usize, usize);

struct Shared {
    /// (number of the loop, next task of it). Odd numbers are loops without tasks.
    next: AtomicU64,
    /// The loop's body and how to call it. Valid while a task of that loop can still be taken.
    body: AtomicPtr<()>,
    call: AtomicPtr<()>,
    tasks: AtomicUsize,
    done: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    workers: Vec<Worker>,
}

struct Worker {
    sleeps: AtomicBool,
}

/// Threads that run the tasks of one loop at a time.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Held for the time of a loop: loops from several threads run one after the other.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads; the thread that calls [`Pool::run`] is one of them.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            body: AtomicPtr::new(std::ptr::null_mut()),
            call: AtomicPtr::new(std::ptr::null_mut()),
            tasks: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            workers: (1..threads).map(|_| Worker { sleeps: AtomicBool::new(false) }).collect(),
        });
        let handles = (1..threads)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("arges-{worker}"))
                    .spawn(move || shared.work(worker))
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, handles, turn: Mutex::new(()) }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `body(task, thread)` for every task in `0..tasks`, in any order, and returns when all are done.
    /// `thread` is below [`Pool::threads`] and no two tasks run under one number at a time. Must not be
    /// called from within `body`.
    ///
    /// # Panics
    /// With the panic of a task, once the others have ended.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) {
        assert!(tasks <= MAX_TASKS, "{tasks} tasks in one loop");
        if tasks <= 1 || self.handles.is_empty() {
            for task in 0..tasks {
                body(task, 0);
            }
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        // A loop without tasks comes between, so that nobody who still looks for tasks of the last loop takes one
        // by the number of tasks of this: whoever reads a new field below also sees that the last loop is over.
        let epoch = (shared.next.load(Ordering::Relaxed) >> TASK_BITS) + 2;
        shared.next.store((epoch - 1) << TASK_BITS | MAX_TASKS as u64, Ordering::SeqCst);
        shared.body.store((&raw const body).cast_mut().cast(), Ordering::Release);
        shared.call.store(call_body::<F> as Call as *mut (), Ordering::Release);
        shared.tasks.store(tasks, Ordering::Release);
        shared.done.store(0, Ordering::Release);
        shared.next.store(epoch << TASK_BITS, Ordering::SeqCst);
        for (worker, handle) in shared.workers.iter().zip(&self.handles).take(tasks - 1) {
            if worker.sleeps.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        shared.take_tasks(epoch, 0);
        shared.wait_for_done(tasks);
        if let Some(panic) = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches the panics of its tasks, so it ends in order.
            let _ = handle.join();
        }
    }
}

/// # Safety
/// `body` points to a live `F`.
unsafe fn call_body<F: Fn(usize, usize)>(body: *const (), task: usize, thread: usize) {
    // SAFETY: by the contract above.
    let body = unsafe { &*body.cast::<F>() };
    body(task, thread);
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let Some(epoch) = self.wait_for_loop(worker, seen) else { return };
            self.take_tasks(epoch, worker);
            seen = epoch;
        }
    }

    /// The number of a loop other than `seen`, or `None` when the pool ends.
    fn wait_for_loop(&self, worker: usize, seen: u64) -> Option<u64> {
        let fresh = || {
            let epoch = self.next.load(Ordering::SeqCst) >> TASK_BITS;
            (epoch != seen).then_some(epoch)
        };
        for _ in 0..SPINS {
            if let Some(epoch) = fresh() {
                return Some(epoch);
            }
            spin_loop();
        }
        let sleeps = &self.workers[worker - 1].sleeps;
        loop {
            sleeps.store(true, Ordering::SeqCst);
            let found = fresh();
            if found.is_none() && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            sleeps.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(epoch) = found.or_else(fresh) {
                return Some(epoch);
            }
        }
    }

    /// Runs tasks of loop `epoch` until none is left to take.
    fn take_tasks(&self, epoch: u64, thread: usize) {
        loop {
            let next = self.next.load(Ordering::Acquire);
            let (body, call, tasks) = (
                self.body.load(Ordering::Acquire),
                self.call.load(Ordering::Acquire),
                self.tasks.load(Ordering::Acquire),
            );
            let task = (next & MAX_TASKS as u64) as usize;
            if next >> TASK_BITS != epoch || task >= tasks {
                return;
            }
            // Succeeds only while loop `epoch` still has a task to give, so what was read above belongs to it.
            if self.next.compare_exchange_weak(next, next + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: `call` was stored from a `Call` together with `body`, and the caller of `run` keeps the
            // body alive until every task, this one too, is counted in `done`.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe {
                let call = std::mem::transmute::<*mut (), Call>(call);
                call(body, task, thread);
            }));
            if let Err(panic) = result {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            let done = self.done.fetch_add(1, Ordering::SeqCst) + 1;
            if done == tasks
                && thread != 0
                && self.caller_sleeps.load(Ordering::SeqCst)
                && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
            {
                caller.unpark();
            }
        }
    }

    fn wait_for_done(&self, tasks: usize) {
        let finished = || self.done.load(Ordering::SeqCst) == tasks;
        for _ in 0..SPINS {
            if finished() {
                return;
            }
            spin_loop();
        }
        while !finished() {
            self.caller_sleeps.store(true, Ordering::SeqCst);
            if !finished() {
                thread::park();
            }
            self.caller_sleeps.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100, 1001] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, thread| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn loops_of_changing_length_right_after_each_other_run_every_task_once() {
        let pool = Pool::new(2);
        let counts: Vec<AtomicUsize> = (0..40).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..200_000 {
            let tasks = 2 + round * 7 % 38;
            pool.run(tasks, |task, _| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            for (task, count) in counts.iter().enumerate() {
                assert_eq!(count.swap(0, Ordering::Relaxed), usize::from(task < tasks), "round {round}");
            }
        }
    }

    #[test]
    fn loops_after_a_sleep_and_from_several_threads_complete() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        pool.run(7, |_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                        if round % 50 == 0 {
                            thread::sleep(Duration::from_millis(2));
                        }
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 7);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, |task, _| assert!(task != 7, "seven"))));
        assert!(result.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 10);
    }
}
