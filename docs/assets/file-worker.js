// Browsers give pages that are opened from disk no workers. For the search, which runs in one, a hidden frame stands in.
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement('iframe');
    this.frame.hidden = true;
    document.body.append(this.frame);
    this.inner = this.frame.contentWindow;
    this.inner.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }));
    const script = this.inner.document.createElement('script');
    script.src = new URL(url, location.href).href;
    this.ready = new Promise(done => script.addEventListener('load', done));
    this.inner.document.body.append(script);
  }
  postMessage(data) { this.ready.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent('message', { data }))); }
  terminate() { this.frame.remove(); }
};
