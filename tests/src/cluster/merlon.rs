//! Merlon in a cluster, as a platform team installs it: its images, its charts, `helm install`.

use std::path::PathBuf;

use tokio::sync::OnceCell;

use super::Cluster;
use crate::{
    process::{Ended, Plan},
    tools, wait,
};

/// The namespace that Merlon is installed in.
pub const NAMESPACE: &str = "merlon-system";
/// The image of what stands in for people's programs: curl, Redis, BusyBox's httpd.
pub const PROGRAMS: &str = "localhost/programs:test";
/// The mesh's trust domain.
pub const TRUST_DOMAIN: &str = "cluster.merlon.test";

/// The images of Merlon's programs as they are built now.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    tag: String,
}

impl Images {
    /// Builds them from their `Dockerfile`s, once per test binary, and only if something changed.
    ///
    /// # Panics
    /// When that fails, with what was said.
    pub async fn built() -> &'static Self {
        static BUILT: OnceCell<Images> = OnceCell::const_new();
        BUILT
            .get_or_init(async || {
                let proxy = tools::ours("merlon-proxy");
                let programs = proxy.parent().expect("a folder");
                let folder = programs.join("images");
                let work = crate::folder::fresh();
                let script = tools::root().join("tests/cluster/images");
                let ended = Plan::new("images", script, work.path())
                    .arg(&folder)
                    .arg(programs)
                    // The first time a Debian is fetched for it.
                    .run_within(5 * wait::PATIENCE)
                    .await;
                assert_eq!(ended.code(), 0, "{}", ended.err);
                Self {
                    folder,
                    tag: ended.out.trim().to_owned(),
                }
            })
            .await
    }

    /// The tag that all of them bear.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// Values of the chart for who tries it: these images, and no Vault.
pub fn values_for_trying(images: &Images) -> String {
    format!(
        "mesh: {{ trustDomain: {TRUST_DOMAIN} }}\n\
         # A key in a Secret: for trying, not for running.\n\
         certificates: {{ issuer: embedded }}\n\
         images: {{ registry: localhost, tag: \"{}\", pullPolicy: Never }}\n",
        images.tag()
    )
}

impl Cluster {
    /// Runs `helm`, whatever comes of it.
    pub async fn try_helm(&self, arguments: &[&str]) -> Ended {
        self.inside("helm", &tools::installed("helm"))
            .env("HELM_CACHE_HOME", self.folder().join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.folder().join("helm/config"))
            .env("HELM_DATA_HOME", self.folder().join("helm/data"))
            .args(arguments)
            .run()
            .await
    }

    /// Runs `helm` and gives what it printed.
    ///
    /// # Panics
    /// When it fails; with what the cluster says about Merlon's pods.
    pub async fn helm(&self, arguments: &[&str]) -> String {
        let ended = self.try_helm(arguments).await;
        if ended.code() != 0 {
            let pods = self
                .try_kubectl(&["describe", "pods", "-n", NAMESPACE])
                .await;
            let logs = self
                .try_kubectl(&[
                    "logs",
                    "-n",
                    NAMESPACE,
                    "--all-containers",
                    "--tail=50",
                    "-l",
                    "app.kubernetes.io/name=merlon",
                ])
                .await;
            panic!(
                "helm {arguments:?}: {}\n{}\n{}",
                ended.err, pods.out, logs.out
            );
        }
        ended.out
    }

    /// Puts Merlon's images into it, and [`PROGRAMS`].
    pub async fn load_merlon(&self) -> &'static Images {
        let images = Images::built().await;
        for name in [
            "merlon-proxy",
            "merlon-control-plane",
            "merlon-intercept",
            "programs",
        ] {
            self.load_archive(&images.folder.join(format!("{name}.tar")))
                .await;
        }
        images
    }

    /// Installs the charts as `docs/install.md` says, with these values beside those that name the images.
    ///
    /// # Panics
    /// When Helm fails.
    pub async fn install_merlon(&self, values: &str) {
        self.load_merlon().await;
        let definitions = tools::root().join("charts/merlon-crds");
        let definitions = definitions.display().to_string();
        self.helm(&["install", "merlon-crds", &definitions]).await;
        self.helm_merlon(
            "install",
            values,
            &["--create-namespace", "--wait", "--timeout", "120s"],
        )
        .await;
    }

    /// `helm install` or `upgrade` of the chart, with these values beside those that name the images.
    ///
    /// # Panics
    /// When Helm fails.
    pub async fn helm_merlon(&self, verb: &str, values: &str, more: &[&str]) {
        let chart = tools::root().join("charts/merlon").display().to_string();
        let file = self.folder().join("values.yaml");
        std::fs::write(&file, values).expect("a file");
        let file = file.display().to_string();
        let tag = format!("images.tag={}", Images::built().await.tag());
        let mut all = vec![verb, "merlon", &chart, "--namespace", NAMESPACE];
        all.extend(["--values", &file, "--set-string", &tag]);
        all.extend(["--set", "images.registry=localhost,images.pullPolicy=Never"]);
        all.extend(more);
        self.helm(&all).await;
    }
}
