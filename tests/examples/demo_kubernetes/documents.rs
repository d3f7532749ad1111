//! The resources that the demo applies.

pub(crate) const PROGRAMS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: orders, namespace: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: other, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: orders, namespace: shop }
spec: { selector: { app: orders }, ports: [{ port: 80, targetPort: http }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: orders, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: orders } }
  template:
    metadata: { labels: { app: orders } }
    spec:
      serviceAccountName: orders
      terminationGracePeriodSeconds: 5
      containers:
        - name: orders
          image: localhost/programs:test
          imagePullPolicy: Never
          command:
            - sh
            - -c
            - |
              mkdir -p /site/cgi-bin
              echo two-orders-of-ada > /site/index.html
              printf '#!/bin/sh\necho; env | grep ^HTTP_' > /site/cgi-bin/head
              printf '#!/bin/sh\necho; cat' > /site/cgi-bin/order
              chmod +x /site/cgi-bin/*
              busybox httpd -f -p 8080 -h /site & p=$!
              trap "kill $p; sleep 0.3; exit 0" TERM
              wait
          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: http }, periodSeconds: 1 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 1
      containers: [{ name: web, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: other, namespace: shop }
spec:
  selector: { matchLabels: { app: other } }
  template:
    metadata: { labels: { app: other } }
    spec:
      serviceAccountName: other
      terminationGracePeriodSeconds: 1
      containers: [{ name: other, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }]
---
apiVersion: v1
kind: Pod
metadata: { name: outsider, namespace: default }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: outsider, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }]
"#;

pub(crate) const POLICY: &str = r#"
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  policies: |
    @id("web-reads-and-orders")
    permit (
      principal == Workload::"shop/web",
      action in [Action::"GET", Action::"POST"],
      resource
    );
"#;

pub(crate) const BROKEN: &str = r#"
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: broken, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  policies: |
    @id("web-reads")
    permit (
      principal == Workload::"shop/web",
      action == Action::"GIT",
      resource
    );
"#;

pub(crate) const SCHEMA: &str = r#"
apiVersion: merlon.io/v1alpha1
kind: RequestValidation
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  unknownRoutes: allow
  routes:
    - path: /cgi-bin/order
      methods: [POST]
      contentTypes: [application/json]
      maxBody: 4KiB
      body:
        type: object
        additionalProperties: false
        required: [quantity]
        properties: { quantity: { type: integer, minimum: 1 } }
"#;

pub(crate) const LIMIT: &str = r#"
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  limits: [{ name: per-caller, per: principal, rate: { requests: 1, per: 1m }, burst: 5 }]
"#;
