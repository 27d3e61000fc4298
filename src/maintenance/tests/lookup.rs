//! Looking for one call among the files of many days.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::super::names::HOUR;
use super::store::Played;
use super::{BEGAN, DAY, World, column, rng, samples};
use crate::flush::Part;
use crate::query::{Asker, Engine, LocalEngine, OrgView, SqlLimits, SqlRequest, TableState};

/// How many rows a statement counts, and how many files are read for it.
async fn asked(engine: &LocalEngine, played: &Played, view: &OrgView, sql: String) -> (i64, usize) {
    played.read();
    let result =
        engine.query(view.clone(), SqlRequest { query: sql, params: Vec::new() }, Asker::sql(None)).await.unwrap();
    let batches: Vec<_> = result.stream.try_collect().await.unwrap();
    let count = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(batches[0].column(0)).value(0);
    (count, played.read().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_is_found_by_its_id_in_one_file_of_many() {
    let played = Played::over(&Arc::new(InMemory::new()));
    let objects: Arc<dyn ObjectStore> = Arc::new(played.clone());
    let (world, mut rng) = (World::on(Arc::clone(&objects), 1), rng(15));
    let mut ids = Vec::new();
    for day in 0..12 {
        world.set(BEGAN + day * DAY + HOUR);
        let rows = samples(&mut rng, 50, BEGAN + day * DAY, HOUR);
        ids.push(arrow::array::AsArray::as_string::<i32>(column(&rows, "invocation_id")).value(7).to_owned());
        world.flush(&rows).await;
    }
    let files = world.table(Part::Samples).await.refresh().await.unwrap().files;
    assert_eq!(files.len(), 12);
    let samples = TableState { files, live: Vec::new(), evidence: None };
    let view = OrgView {
        org: World::org(),
        samples,
        hourly: TableState::default(),
        daily: TableState::default(),
        payloads: TableState::default(),
        audit: TableState::default(),
    };
    let engine = LocalEngine::new(objects, SqlLimits::default()).unwrap();
    let of = |id: &str| format!("SELECT count(*) FROM tool_invocations WHERE invocation_id = '{id}'");
    for id in &ids {
        assert_eq!(asked(&engine, &played, &view, of(id)).await, (1, 1), "{id}");
    }
    let none = "00000000-0000-4000-8000-000000000000";
    assert_eq!(asked(&engine, &played, &view, of(none)).await, (0, 0), "no file can have it");
}
