//! The clients of a life: they send, send again and read, by chance.

use std::time::Duration;

use mcpg::ingest::RowKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::batches::{Batch, Naming};
use super::determinism::mix;
use super::world::World;

/// What the clients of a life do, by chance.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) random: StdRng,
    pub(super) tasks: JoinSet<()>,
    pub(super) lanes: usize,
}

impl Clients {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(mix(seed)), tasks: JoinSet::new(), lanes: 0 }
    }

    fn any<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.random.random_range(0..of.len())].clone()) }
    }

    /// Several send at once.
    pub(super) fn burst(&mut self, world: &World) {
        for _ in 0..self.random.random_range(1..6) {
            let rows = self.random.random_range(1..5);
            let batch = match self.random.random_range(0..10) {
                0..3 if self.lanes > 0 => {
                    let lane = self.random.random_range(0..self.lanes);
                    world.batches().next_of(lane, rows)
                }
                roll => {
                    let org = self.any(world.orgs()).unwrap();
                    let kind = if self.random.random_bool(0.35) { RowKind::Event } else { RowKind::Sample };
                    let naming = if roll == 9 { Naming::Nameless } else { Naming::Key };
                    Some(world.make(&org, kind, rows, naming))
                }
            };
            if let Some(batch) = batch {
                self.send(world, batch);
            }
        }
    }

    /// Sends a batch to any node, after a moment.
    fn send(&mut self, world: &World, batch: Batch) {
        let up = world.up();
        let Some(number) = self.any(&up) else {
            world.batches().not_sent(&batch);
            return;
        };
        let (world, pause) = (world.clone(), self.random.random_range(0..30));
        self.tasks.spawn(async move {
            sleep(Duration::from_millis(pause)).await;
            match world.node(number) {
                Some(node) => drop(world.send(&node, &batch).await),
                None => world.batches().not_sent(&batch),
            }
        });
    }

    /// A batch with a key is sent again, acknowledged or not; sometimes to two nodes at once.
    pub(super) fn again(&mut self, world: &World) {
        let with_key = |batch: &&Batch| batch.naming == Naming::Key;
        let batches: Vec<_> = world.batches().all().iter().filter(with_key).cloned().collect();
        if let Some(batch) = self.any(&batches) {
            if self.random.random_bool(0.4) {
                self.send(world, batch.clone());
            }
            self.send(world, batch);
        }
    }

    /// Reads an org on some node.
    pub(super) fn read(&mut self, world: &World) {
        let (up, org) = (world.up(), self.any(world.orgs()).unwrap());
        let Some(number) = self.any(&up) else { return };
        let world = world.clone();
        self.tasks.spawn(async move {
            if let Some(node) = world.node(number) {
                world.look(&node, &org).await;
            }
        });
    }

    /// A panic in a task that has ended is one here.
    pub(super) fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.unwrap();
        }
    }
}
