//! The stores on servers, on real servers that are started here.
#![cfg(target_os = "linux")]

mod cases;
mod certificate;
mod fixture;
mod proxy;
mod running;

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
#[path = "../../src/server/etcd_client.rs"]
#[expect(dead_code, reason = "it has what the store needs")]
mod etcd_client;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
