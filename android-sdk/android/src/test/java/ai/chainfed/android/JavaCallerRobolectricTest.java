package ai.chainfed.android;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import ai.chainfed.core.Example;
import ai.chainfed.core.ExampleSource;
import ai.chainfed.testing.FakeDeviceState;
import ai.chainfed.testing.InMemoryCoordinator;
import android.app.Application;
import java.io.Closeable;
import java.io.File;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.RuntimeEnvironment;

/** An app that is written in Java: all that is needed, without coroutines. */
@RunWith(RobolectricTestRunner.class)
public class JavaCallerRobolectricTest {
  @Test
  public void agreesListensAndDeletes() throws Exception {
    FixtureKt.initializeWorkManager();
    Application application = RuntimeEnvironment.getApplication();
    File bundle = new File(System.getProperty("chainfed.vectors"), "bundles/encoder/bundle");
    List<Example> examples = Arrays.asList(new Example("bread and honey", "food"), new Example("the dog", 0));
    try (InMemoryCoordinator coordinator = new InMemoryCoordinator(bundle)) {
      coordinator.train(0, 1);
      ChainFed chainFed =
          ChainFed.builder(application)
              .coordinator("fl.example.com:443")
              .channel(coordinator::connect)
              .enrolmentToken(() -> "token")
              .examples(() -> ExampleSource.text(examples))
              .policy(new PolicyBuilder().charging().idle().unmetered().batteryAbove(30).storage(500_000_000).build())
              .notification(new NotificationBuilder().title("Learning").build())
              .deviceState(new FakeDeviceState())
              .keys(FixtureKt.softwareKeys())
              .configure();
      List<ChainFedStatus> seen = new CopyOnWriteArrayList<>();
      Closeable listening = chainFed.addStatusListener(Runnable::run, seen::add);

      chainFed.enable().get(60, TimeUnit.SECONDS);
      FixtureKt.workNow(chainFed, (notification, done) -> kotlin.Unit.INSTANCE);

      assertEquals(1, chainFed.getStatus().getValue().getRoundsDone());
      chainFed.disable(true).get(60, TimeUnit.SECONDS);
      listening.close();
      assertTrue(seen.get(0).getState() instanceof ChainFedStatus.State.Disabled);
      assertTrue(seen.size() > 1);
    }
  }
}
