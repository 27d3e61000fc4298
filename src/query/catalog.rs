//! The names a query can resolve: one catalog, two schemas, the tables put there, and nothing that could be added
//! later.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::{Result, plan_err};

/// The catalog's name.
pub(super) const CATALOG: &str = "mcpg";
/// The schema of the org's tables.
pub(super) const PUBLIC: &str = "public";
/// The schema that describes them.
pub(super) const INFORMATION_SCHEMA: &str = "information_schema";

/// Tables by name.
pub(super) type Tables = BTreeMap<String, Arc<dyn TableProvider>>;

/// The one catalog, as a list of catalogs.
#[derive(Debug)]
pub(super) struct OneCatalog(Arc<FixedCatalog>);

impl OneCatalog {
    /// A catalog of fixed schemas.
    pub(super) fn new(schemas: impl IntoIterator<Item = (&'static str, Tables)>) -> Self {
        let schemas = schemas.into_iter().map(|(name, tables)| (name, Arc::new(FixedSchema(tables)))).collect();
        Self(Arc::new(FixedCatalog(schemas)))
    }
}

impl CatalogProviderList for OneCatalog {
    /// Catalogs are fixed: what is offered here is dropped.
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::clone(&self.0) as _)
    }
}

#[derive(Debug)]
struct FixedCatalog(BTreeMap<&'static str, Arc<FixedSchema>>);

impl CatalogProvider for FixedCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.0.keys().map(|name| (*name).to_owned()).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.0.get(name).map(|schema| Arc::clone(schema) as _)
    }
}

#[derive(Debug)]
struct FixedSchema(Tables);

#[async_trait]
impl SchemaProvider for FixedSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.0.get(name).cloned())
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn register_table(&self, name: String, _: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        plan_err!("no table can be added, so not {name:?} either")
    }
}
