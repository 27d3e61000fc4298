//! The store on services that speak S3's protocol: SeaweedFS and moto, which keep their word, and two that do not.

mod buckets;
mod conditional;
mod nodes;
mod probe;
mod served;
mod tables;
mod tls;
