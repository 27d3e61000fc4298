//! A life: nodes, clients and a store, and what happens to them, all of it drawn from a seed.

use std::time::Duration;

use mcpg::plane::Parts;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::clients::Clients;
use super::determinism;
use super::disk::Disk;
use super::faults::{Fault, Single, Weather};
use super::node::Recipe;
use super::trace::Trace;
use super::world::World;

/// Ledgers whose entries are old at once. They are looked for every third second, so that what a prune says of itself
/// is signed, and what it removed is gone, before the next one.
const SHORT_LIVED: &str = "retention: { ledger: 1s }";

/// What is fixed of a life; the rest follows from its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// No fault, and every node runs all the time.
    Fair,
    /// No fault of the store's; nodes are frozen, killed, drained and started.
    Restless,
    /// One operation or two meet a fault.
    Single,
    /// Now and then the store says of an object that was just made that it was there already.
    Liar,
    /// As [`Plan::Single`], where ledgers are pruned while they grow.
    Pruned,
    /// Whatever is written of one org fails.
    Sick,
    /// Everything that can happen.
    Wild,
    /// As wild, but nothing goes wrong with what is read or written of Delta's log.
    WildButDelta,
}

impl Plan {
    pub(super) const ALL: [Self; 8] = [
        Self::Fair,
        Self::Restless,
        Self::Single,
        Self::Liar,
        Self::Pruned,
        Self::Sick,
        Self::Wild,
        Self::WildButDelta,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Restless => "restless",
            Self::Single => "single",
            Self::Liar => "liar",
            Self::Pruned => "pruned",
            Self::Sick => "sick",
            Self::Wild => "wild",
            Self::WildButDelta => "wild-but-delta",
        }
    }

    fn steps(self) -> usize {
        if matches!(self, Self::Single | Self::Liar | Self::Pruned) { 24 } else { 60 }
    }

    fn is_restless(self) -> bool {
        !matches!(self, Self::Fair | Self::Single | Self::Liar | Self::Pruned)
    }

    fn weather(self, random: &mut StdRng, nodes: usize, flush: u64) -> Weather {
        let spared: &[_] = if self == Self::WildButDelta { &["_delta_log"] } else { &[] };
        match self {
            Self::Fair | Self::Restless => Weather::Fair,
            Self::Sick => Weather::Sick("orgs/org-0/"),
            Self::Liar => {
                let singles = (0..8).map(|number| Single {
                    node: number % nodes,
                    from: random.random_range(0..300),
                    fault: Fault::DoneExists,
                });
                Weather::At(singles.collect())
            }
            Self::Single | Self::Pruned => {
                let (count, kinds) = (random.random_range(1..3), Single::kinds(Duration::from_millis(flush)));
                let singles = (0..count).map(|_| Single {
                    node: random.random_range(0..nodes),
                    from: random.random_range(0..500),
                    fault: kinds[random.random_range(0..kinds.len())],
                });
                Weather::At(singles.collect())
            }
            Self::Wild | Self::WildButDelta => {
                let longest = Duration::from_millis(200 * flush).min(Duration::from_secs(900));
                Weather::Foul { one_in: random.random_range(20..80), longest, spared }
            }
        }
    }
}

/// What became of a life.
#[derive(Debug)]
pub(super) struct Lived {
    pub(super) outcome: Result<Summary, String>,
    pub(super) trace: Trace,
}

/// How much happened in a life that came to a good end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) operations: u64,
    pub(super) acknowledged: u64,
    pub(super) answers: u64,
    /// Virtual time, in seconds.
    pub(super) seconds: u64,
}

/// Runs something in a world of its own.
pub(super) fn play<T, F>(seed: u64, life: impl FnOnce(Trace) -> F + Send + 'static) -> (Result<T, String>, Trace)
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let trace = Trace::default();
    let (of_log, of_life) = (trace.clone(), trace.clone());
    let outcome = determinism::run(seed, move || {
        let log = tracing_subscriber::fmt().with_writer(of_log).with_max_level(tracing::Level::WARN);
        let log = log.without_time().with_target(false).with_ansi(false).finish();
        let life = life(of_life);
        async move {
            let guard = tracing::subscriber::set_default(log);
            // The guard cannot move between threads, and there is but one here.
            std::mem::forget(guard);
            life.await
        }
    });
    (outcome, trace)
}

/// Lives the life of a seed, with what `alter` changes of every node's parts.
pub(super) fn live(plan: Plan, seed: u64, alter: fn(&mut Parts)) -> Lived {
    let (outcome, trace) = play(seed, move |trace| lived(plan, seed, alter, trace));
    Lived { outcome, trace }
}

async fn lived(plan: Plan, seed: u64, alter: fn(&mut Parts), trace: Trace) -> Summary {
    let mut clients = Clients::new(seed);
    let nodes = clients.random.random_range(2..4);
    let orgs = clients.random.random_range(2..7);
    // With a short interval trims are frequent, with a long one hours cost little.
    let flush = [300, 1_000, 5_000][clients.random.random_range(0..3)];
    let retention = if plan == Plan::Pruned { SHORT_LIVED } else { "" };
    let config = World::config(orgs, Duration::from_millis(flush), retention);
    let recipe = Recipe { alter, ..Recipe::of(&config) };
    let world = World::new(seed, trace, Disk::default(), orgs, recipe);
    world.checker().pruned = plan == Plan::Pruned;
    clients.lanes = 3;
    world.open_lanes(clients.lanes, &mut clients.random);
    world.sea().tell(format!("{nodes} nodes, {orgs} orgs, a flush every {flush} ms"));
    let weather = plan.weather(&mut clients.random, nodes, flush);
    world.sea().tell(format!("{weather:?}"));
    // A fault of one operation may befall the first start as well.
    let (early, late) = if matches!(plan, Plan::Single | Plan::Liar | Plan::Pruned) {
        (weather, None)
    } else {
        (Weather::Fair, Some(weather))
    };
    world.sea().set_weather(early);
    for number in 0..nodes {
        world.start(number).await;
    }
    late.into_iter().for_each(|weather| world.sea().set_weather(weather));
    for _ in 0..plan.steps() {
        step(&world, &mut clients, nodes, flush, plan.is_restless()).await;
        clients.reap();
    }
    world.finish(&mut clients.tasks, nodes).await;
    let merged =
        world.sea().disk.list(None, None).iter().filter(|meta| meta.location.as_ref().contains("/part-1-")).count();
    world.sea().tell(format!("{merged} files came of merges"));
    assert!(plan != Plan::Fair || merged > 0, "no file was ever merged");
    let checker = world.checker();
    Summary {
        operations: world.sea().operations(),
        acknowledged: checker.sent.values().filter(|sent| sent.acknowledged).count() as u64,
        answers: checker.answers,
        seconds: world.sea().now() / 1_000,
    }
}

async fn step(world: &World, clients: &mut Clients, nodes: usize, flush: u64, restless: bool) {
    let number = clients.random.random_range(0..nodes);
    match clients.random.random_range(0..100) {
        0..42 => clients.burst(world),
        42..54 => clients.read(world),
        54..60 => clients.again(world),
        60..84 => sleep(Duration::from_millis(clients.random.random_range(5..2 * flush))).await,
        84..88 => sleep(Duration::from_millis(clients.random.random_range(flush..8 * flush))).await,
        _ if !restless => clients.burst(world),
        88..91 => {
            let most = 400 * flush;
            let pause =
                Duration::from_millis(clients.random.random_range(100..if flush > 1_000 { most } else { most / 4 }));
            if let Some(process) = world.process(number) {
                process.freeze(pause);
            }
        }
        91..93 => {
            world.sea().tell(format!("node {number} is killed"));
            world.kill(number);
        }
        93..95 => {
            let world = world.clone();
            clients.tasks.spawn(async move { world.stop(number).await });
        }
        _ => {
            let down = (0..nodes).find(|number| world.process(*number).is_none());
            if let Some(number) = down {
                let world = world.clone();
                clients.tasks.spawn(async move { world.try_start_once(number).await });
            }
        }
    }
}
