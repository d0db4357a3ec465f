//! Members started from an old image of their data directory: what they had lost comes back to them, and is told.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::load::{all, cluster, count, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::{Cluster, eventually};

const LOST: u64 = 500;
const MEANWHILE: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_image_lacks_comes_back_and_is_told_also_twice() {
    let _turn = turn().await;
    let mut cluster = cluster("").await;
    let image = image_of_stopped(&mut cluster, 2).await;
    cluster.node(2).serve();
    put(&cluster.client_of(2), "lost", LOST).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    for round in 1..=2 {
        cluster.node(2).kill();
        put_back(&mut cluster, 2, &image);
        cluster.node(2).serve();
        put(&cluster.client_of(2), &format!("round-{round}"), MEANWHILE).await;
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        assert_told(&cluster, 2);
        assert_counts(&cluster, &[("lost", LOST), ("round-1", MEANWHILE)]).await;
    }
    assert_counts(&cluster, &[("round-2", MEANWHILE)]).await;
    finish(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_image_takes_writes_while_its_peers_are_down_and_nothing_is_lost() {
    let _turn = turn().await;
    for down in [&[1][..], &[1, 3]] {
        let mut cluster = cluster("").await;
        let image = image_of_stopped(&mut cluster, 2).await;
        cluster.node(2).serve();
        put(&cluster.client_of(2), "lost", LOST).await;
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        cluster.node(2).kill();
        down.iter().for_each(|id| cluster.node(*id).kill());
        put_back(&mut cluster, 2, &image);
        cluster.node(2).serve();
        put(&cluster.client_of(2), "meanwhile", MEANWHILE).await;
        down.iter().for_each(|id| cluster.node(*id).serve());
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        assert_told(&cluster, 2);
        assert_counts(&cluster, &[("lost", LOST), ("meanwhile", MEANWHILE)]).await;
        finish(cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_started_from_images_of_different_ages_end_equal_with_all_that_any_image_held() {
    let _turn = turn().await;
    let mut cluster = cluster("").await;
    let mut images = Vec::new();
    for id in [2, 3, 1] {
        put(&cluster.client_of(id), &format!("of-{id}"), LOST).await;
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        images.push((id, image_of_stopped(&mut cluster, id).await));
        cluster.node(id).serve();
        cluster.wait_until_linked(EQUAL_WITHIN);
    }
    // This is in no image, and is gone with the disks.
    put(&cluster.client_of(2), "late", MEANWHILE).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    [1, 2, 3].into_iter().for_each(|id| cluster.node(id).kill());
    for (id, image) in &images {
        put_back(&mut cluster, *id, image);
    }
    [1, 2, 3].into_iter().for_each(|id| cluster.node(id).serve());
    put(&cluster.client_of(3), "meanwhile", MEANWHILE).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    let held = [("of-1", LOST), ("of-2", LOST), ("of-3", LOST), ("meanwhile", MEANWHILE), ("late", 0)];
    assert_counts(&cluster, &held).await;
    finish(cluster).await;
}

/// Stops a node and copies its data directory.
async fn image_of_stopped(cluster: &mut Cluster, id: u32) -> PathBuf {
    cluster.node(id).stop();
    let image = cluster.directory().join(format!("image-of-{id}"));
    copy(&cluster.node(id).data_dir(), &image);
    image
}

/// Replaces the data directory of a node that does not run.
fn put_back(cluster: &mut Cluster, id: u32, image: &Path) {
    let data = cluster.node(id).data_dir();
    std::fs::remove_dir_all(&data).expect("the data directory can be removed");
    copy(image, &data);
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("every Unix has cp");
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

/// The node has told its operator that it had lost writes of its own, and that they are back.
fn assert_told(cluster: &Cluster, id: u32) {
    let said = |words: &str| {
        let events = cluster.polyarch(["events", "--json", "--limit", "1000", "--node", &cluster.address(id)]);
        events.ok().text().contains(words).then_some(())
    };
    eventually("the loss to be told", EQUAL_WITHIN, || said("had lost"));
    eventually("the return to be told", EQUAL_WITHIN, || said("are back"));
}

async fn assert_counts(cluster: &Cluster, expected: &[(&str, u64)]) {
    for id in [1, 2, 3] {
        let client = cluster.client_of(id);
        for (prefix, expected) in expected {
            let found = count(&client, prefix).await.expect("the node answers") as u64;
            assert_eq!(found, *expected, "{prefix} on node {id}");
        }
    }
}

async fn finish(mut cluster: Cluster) {
    let shown = all(&cluster.client_of(1)).await;
    for id in [2, 3] {
        assert!(all(&cluster.client_of(id)).await == shown, "equal digests, and yet another content");
    }
    cluster.stop();
    cluster.verify_equal_histories();
}
