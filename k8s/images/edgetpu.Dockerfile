# The runner's image with Google's Edge TPU runtime, which Coralline may not hand on. In a folder
# with the runtime's package, libedgetpu1-std_*.deb, alone:
#
#   docker build -f .../k8s/images/edgetpu.Dockerfile -t coralline-runner-edgetpu:0.1.0 .
ARG RUNNER=coralline-runner:0.1.0
FROM ${RUNNER}
USER root
COPY libedgetpu1-std_*.deb /tmp/
RUN dpkg --install /tmp/libedgetpu1-std_*.deb && rm /tmp/*.deb
USER 10001:10001
