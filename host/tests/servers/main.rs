//! Tests of the stores on servers, with real servers that the tests start.
#![cfg(target_os = "linux")]

mod cases;
mod certificate;
mod fixture;
mod proxy;
mod running;

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
#[path = "../../src/server/etcd/client/mod.rs"]
#[expect(dead_code, reason = "the store uses the rest")]
mod etcd_client;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
