//! Runs a life so that nothing but its seed decides what happens: one thread, virtual time, and no randomness from
//! outside.
//!
//! - Time is tokio's, paused: it advances only when no task can run, so every timer fires in order and hours take
//!   milliseconds.
//! - The runtime drains its own queue before it looks at wake-ups from other threads, and has one thread for blocking
//!   tasks, which therefore end in the order in which they began.
//! - A life that is compared with another has a process of its own ([`apart`](super::apart)): what libraries make once
//!   a process would make the second life another than the first.
//! - `getrandom` is replaced on the threads of a simulation. It feeds the keys of `std`'s hash maps (and so the order
//!   in which the program walks them), version 4 UUIDs made by libraries, and the branch that `tokio::select!` polls
//!   first. Other threads of the test program still ask the operating system.

#![expect(
    unsafe_code,
    reason = "replacing a function of the C library is the way to make hash maps' order follow from a seed"
)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::future::Future;
use std::sync::Once;
use std::time::Duration;

use tokio::runtime::Builder;

thread_local! {
    /// The state of the generator that stands for the operating system's on a simulation's thread.
    static ENTROPY: Cell<Option<u64>> = const { Cell::new(None) };
    /// Panics on a simulation's thread: the program survives those of its own tasks, a simulation must not.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// SplitMix64: a good mix of 64 bits, each state with one successor.
pub(super) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A hash of what tells one decision of a seed from another.
pub(super) fn hash(seed: u64, parts: &[&dyn AsRef<[u8]>]) -> u64 {
    let mut state = mix(seed);
    for part in parts {
        for byte in part.as_ref() {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        state = mix(state);
    }
    state
}

// The C library's declarations, which the standard library links in any case.
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const GETRANDOM: c_long = 318;
#[cfg(not(target_arch = "x86_64"))]
const GETRANDOM: c_long = 278;

/// Takes the place of the C library's function of this name in the whole test program.
///
/// # Safety
/// As the C library's: `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Ok(Some(mut state)) = ENTROPY.try_with(Cell::get) else {
        // SAFETY: the arguments are the caller's own, for the call that they are meant for.
        return unsafe { syscall(GETRANDOM, buffer, length, flags as c_int) as isize };
    };
    for at in 0..length {
        state = mix(state);
        // SAFETY: the caller says that `length` bytes may be written.
        unsafe { buffer.cast::<u8>().add(at).write(state as u8) };
    }
    // The thread has not ended: it was readable above.
    let _ = ENTROPY.try_with(|entropy| entropy.set(Some(state)));
    length as isize
}

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if ENTROPY.get().is_some() {
                let text = info.payload_as_str().unwrap_or("a panic without words");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                PANICS.with_borrow_mut(|panics| panics.push(format!("{text} ({place})")));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a life on a thread of its own, and gives what it gave; an error is the first panic in it, of whichever task.
pub(super) fn run<T, F>(seed: u64, life: impl FnOnce() -> F + Send + 'static) -> Result<T, String>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    note_panics();
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).stack_size(16 << 20).spawn(move || {
        ENTROPY.set(Some(mix(seed)));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .max_blocking_threads(1)
            .thread_keep_alive(Duration::from_secs(86_400))
            .global_queue_interval(u32::MAX)
            .on_thread_start(move || ENTROPY.set(Some(mix(!seed))))
            .build()
            .unwrap();
        // A task like every other: what `block_on` runs itself is polled at moments that depend on other threads.
        let ended = runtime.block_on(async { tokio::spawn(life()).await });
        drop(runtime);
        let panics = PANICS.take();
        match (ended, panics.into_iter().next()) {
            (Ok(value), None) => Ok(value),
            (_, Some(panic)) => Err(panic),
            (Err(e), None) => Err(e.to_string()),
        }
    });
    thread.unwrap().join().unwrap_or_else(|_| Err("the simulation's own thread panicked".to_owned()))
}

#[test]
fn a_simulations_thread_gets_the_same_randomness_each_time() {
    use std::hash::{BuildHasher, RandomState};
    let draw = |seed| run(seed, || async { (uuid::Uuid::new_v4(), RandomState::new().hash_one(1)) }).unwrap();
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert_ne!(uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
}

#[test]
fn a_panic_of_any_task_fails_the_run() {
    let failed = run(1, || async {
        // As the program does: the task's end is looked at, and nothing more is made of it.
        drop(tokio::spawn(async { panic!("a task ended") }).await);
    });
    assert!(failed.unwrap_err().contains("a task ended"));
}
